"""The HTTP side of each task kind: one file per kind, and one line in `registry.py`."""
