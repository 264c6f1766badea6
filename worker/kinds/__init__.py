"""The task kinds that the worker and the service support.

Each kind has its own file and an entry in `registry.py`. Torch-free.
"""
