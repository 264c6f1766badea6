"""The HTTP application: its routes, request and response bodies, authentication and metrics."""
