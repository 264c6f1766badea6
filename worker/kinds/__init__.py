"""The task kinds that the worker and the service support: one file each, and a line in `registry.py`.

Torch-free.
"""
