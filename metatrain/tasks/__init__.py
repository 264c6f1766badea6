"""Labelled examples and episodes: readers of data sets, seeded samplers, and what keeps one side's examples out of another.

Nothing in this folder needs torch.
"""
