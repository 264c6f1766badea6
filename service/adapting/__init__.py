"""Turn requests to adapt into recorded jobs, and wait for jobs to end."""
