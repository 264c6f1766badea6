"""Readouts turn features into losses and predictions.

Each kind of readout is one file here and one line in `registry.py`.
"""
