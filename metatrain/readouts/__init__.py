"""Readouts turn features into a loss and an answer.

Each kind is one file here and one line in `registry.py`.
"""
