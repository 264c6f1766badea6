"""Whose request is it? Every key in Redis starts with the tenant; today there is one."""

DEFAULT_TENANT = "default"


def tenant() -> str:
    """FastAPI dependency. The door for API keys: routes take the tenant from here and from nowhere else."""
    return DEFAULT_TENANT
