"""The kinds of tasks as HTTP shows them: one file for each, one line in `registry.py`."""
