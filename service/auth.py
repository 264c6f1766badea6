"""Whose request is it? Every key in Redis starts with the tenant; today there is one."""

from collections.abc import Callable
from typing import Literal

DEFAULT_TENANT = "default"
Scope = Literal["adapt", "predict", "admin"]


def tenant() -> str:
    """FastAPI dependency. The door for API keys: routes take the tenant from here and from nowhere else."""
    return DEFAULT_TENANT


def needs(scope: Scope) -> Callable[[], None]:
    """FastAPI dependency of a route that asks for a scope; without keys everybody has all of them."""

    def allowed() -> None:
        return None

    return allowed
