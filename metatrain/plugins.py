"""Entry points: what installed packages add to the registries."""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from metatrain.errors import PluginError, first_line

Part = TypeVar("Part")


def by_own_name(_name: str, create: Callable[[], Any]) -> tuple[str, Any]:
    """Create a part with the function that an entry point loads, and return it with its own `name`."""
    part = create()
    return part.name, part


def with_installed(
    built_in: Mapping[str, Part], group: str, expected: type[Any], make: Callable[[str, Any], tuple[str, Part]]
) -> dict[str, Part]:
    """Return a registry by name: the product's own parts, and those that installed packages register.

    `group`: the group of entry points. `make(name, loaded)` returns the name and the part of an entry point. `expected`: the
    type that a part must be an instance of.
    Raises PluginError, one line that names the entry point and its package, for a part that does not load or is of another type,
    and for a repeated name, so that no part is ever replaced.
    """
    parts = dict(built_in)
    for point in entry_points(group=group):
        package = point.dist.name if point.dist is not None else "unknown"
        where = f"entry point {point.name} = {point.value} in {group} of package {package}"
        try:
            name, part = make(point.name, point.load())
        except Exception as error:  # whatever the package raises: it must not end as a traceback without its name
            raise PluginError(f"{where}: cannot be loaded: {first_line(error)}") from error
        if not isinstance(part, expected):
            raise PluginError(f"{where}: expected a {expected.__name__}, got {type(part).__name__}")
        if name in parts:
            raise PluginError(f"{where}: expected a name of its own, but there is another {name!r}")
        parts[name] = part
    return parts
