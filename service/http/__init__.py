"""The HTTP application: its routes, bodies, authentication and metrics."""
