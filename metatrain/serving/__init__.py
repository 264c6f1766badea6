"""What a process that predicts needs: the bank of resident adapters, and the probe of an architecture."""
