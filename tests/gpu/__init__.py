"""Checks that need a GPU. They are skipped without one; `make check-gpu` runs them."""
