"""Labelled examples and episodes: readers of data sets, seeded samplers, removal of overlap.

Only `arrays.py` needs torch.
"""
