"""What installed packages add to a registry of the product, by entry points."""

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any


def installed(group: str) -> list[tuple[str, Any]]:
    """Load the entry points of a group: the name and the object of each."""
    return [(point.name, point.load()) for point in entry_points(group=group)]


def by_name(entries: Iterable[tuple[str, Any]], group: str) -> dict[str, Any]:
    """Return a registry's entries by their names. Raises ValueError if two have one name: none may take another's place."""
    listed = list(entries)
    found = dict(listed)
    if len(found) < len(listed):
        raise ValueError(f"entry points {group}: two of one name among {', '.join(name for name, _ in listed)}")
    return found
