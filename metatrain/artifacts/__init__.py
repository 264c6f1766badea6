"""Initializations and adapters on disk and as bytes, and the catalog of those that a deployment has."""
