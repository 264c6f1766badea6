"""The bank of resident adapters, and the load-time probe of an architecture with its cache."""
