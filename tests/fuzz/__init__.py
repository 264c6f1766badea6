"""A fuzzer of files: mutated files of every kind, read as the commands read them.

`make fuzz-files` reads 20,000 of them; a fixed small part runs in `make test`.
"""
