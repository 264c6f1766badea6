"""The composition in real containers: `make check-containers`."""
