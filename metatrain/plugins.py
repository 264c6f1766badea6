"""Entry points: add the parts that installed packages register to the built-in registries."""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from metatrain.errors import PluginError, first_line

Part = TypeVar("Part")


def by_own_name(_name: str, create: Callable[[], Any]) -> tuple[str, Any]:
    """Create a part with `create`, the function loaded from an entry point, and return (name, part).

    The name is the part's attribute `name`. The name of the entry point is ignored.
    """
    part = create()
    return part.name, part


def with_installed(
    built_in: Mapping[str, Part], group: str, expected: type[Any], make: Callable[[str, Any], tuple[str, Part]]
) -> dict[str, Part]:
    """Return a registry {name: part}: the built-in parts, and those that installed packages register.

    A part is an object such as a readout kind or a task kind.

    `group`: the group of entry points. `make`: a function that gets an entry point's name and the object loaded from it, and
    returns the part's name and the part. `expected`: the type of a part.

    Raises PluginError if a part cannot be loaded, has another type or repeats a name, so that no part is ever replaced. The message
    is one line that names the entry point and its package.
    """
    parts = dict(built_in)
    for point in entry_points(group=group):
        package = point.dist.name if point.dist is not None else "unknown"
        where = f"entry point {point.name} = {point.value} in {group} of package {package}"
        try:
            name, part = make(point.name, point.load())
        except Exception as error:  # a package can raise any error, and the message must name the package
            raise PluginError(f"{where}: cannot be loaded: {first_line(error)}") from error
        if not isinstance(part, expected):
            raise PluginError(f"{where}: expected a {expected.__name__}, got {type(part).__name__}")
        if name in parts:
            raise PluginError(f"{where}: expected a name of its own, but there is another {name!r}")
        parts[name] = part
    return parts
