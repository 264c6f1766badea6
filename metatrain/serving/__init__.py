"""The bank of adapters on the device, and the load-time probe of an architecture with its cache."""
