"""Benchmarks. `make bench-NAME` runs one of them and writes benchmarks/results/NAME.json."""
