"""Initializations and adapters as files and bytes, and the catalog of a deployment's initializations."""
