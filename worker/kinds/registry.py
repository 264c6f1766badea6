"""The registry of task kinds, by name.

A new kind is a file beside this one and a line here, or an entry point of another package.
"""

from functools import cache

from metatrain.plugins import by_name, installed
from worker.kinds.kind import TaskKind
from worker.kinds.text_classification import TextClassification

ENTRY_POINTS = "quickstudy.task_kinds"
_BUILT_IN: tuple[TaskKind, ...] = (TextClassification(),)


@cache
def task_kinds() -> dict[str, TaskKind]:
    """Return the built-in kinds and those of installed packages (entry points `quickstudy.task_kinds`)."""
    kinds = [*_BUILT_IN, *(make() for _, make in installed(ENTRY_POINTS))]
    return by_name(((kind.name, kind) for kind in kinds), ENTRY_POINTS)
