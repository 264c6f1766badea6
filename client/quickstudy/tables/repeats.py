"""The search for a name that is given twice."""

from collections.abc import Hashable, Iterable


def repeated(names: Iterable[Hashable]) -> Hashable | None:
    """Return the first name that has come before, or None if all names differ.

    The time is proportional to the number of names, whatever they are.
    """
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
