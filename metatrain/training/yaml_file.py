"""Strict reading of YAML files: each key once, and no more values than a person writes."""

from pathlib import Path
from typing import Any

import yaml
from quickstudy.one_line import shown, shown_path
from quickstudy.tables import repeated

from metatrain.errors import RecipeError

_MAX_BYTES = 1_000_000
_MAX_VALUES, _MAX_DEPTH = 100_000, 50


def read_yaml(path: Path, what: str) -> Any:
    """Return the content of a YAML file. Raises RecipeError if the file is missing, too large or not YAML.

    `what`: the kind of file; it appears only in the message.
    """
    where = shown_path(path)
    try:
        if not path.is_file():
            raise RecipeError(f"no {what} at {where}")
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL character
        raise RecipeError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > _MAX_BYTES:
        raise RecipeError(f"{where}: expected a {what} of at most {_MAX_BYTES:,} bytes")
    try:
        content = yaml.load(raw.decode("utf-8-sig"), _Loader)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where}: expected UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date or number that there is not
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RecipeError(f"{where}: not YAML: {reason}") from error
    if not _is_bounded(content):
        raise RecipeError(f"{where}: expected at most {_MAX_VALUES:,} values, {_MAX_DEPTH} deep, also behind aliases")
    return content


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that is given twice. YAML's own loader takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
        if (key := repeated(keys)) is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {shown(key)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _is_bounded(content: Any) -> bool:
    """Return True if a value is small with all aliases expanded, as its readers expand them."""
    left, stack = _MAX_VALUES, [(content, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            return False
        if isinstance(value, dict):
            stack += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            stack += [(part, depth + 1) for part in value]
    return True
