"""Gradients of the query loss through the inner loop, and the meta-learning algorithms built on them."""
