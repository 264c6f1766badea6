"""Initializations and adapters as files and bytes, and the catalog of initializations of a deployment."""
