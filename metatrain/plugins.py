"""Entry points: what installed packages add to the registries."""

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any


def installed(group: str) -> list[tuple[str, Any]]:
    """Load the entry points of a group and return the name and the object of each."""
    return [(point.name, point.load()) for point in entry_points(group=group)]


def by_name(entries: Iterable[tuple[str, Any]], group: str) -> dict[str, Any]:
    """Return a registry's entries by name. Raises ValueError for a repeated name, so no entry is replaced."""
    listed = list(entries)
    registry = dict(listed)
    if len(registry) < len(listed):
        raise ValueError(f"entry points {group}: expected each name once, got {', '.join(name for name, _ in listed)}")
    return registry
