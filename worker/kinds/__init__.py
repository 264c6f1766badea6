"""The kinds of tasks that the worker and the service know: one file for each, one line in `registry.py`. Torch-free."""
