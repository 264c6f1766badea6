"""All kinds of tasks by name. A new one is a file beside this one and a line here, or an entry point of another package."""

from functools import cache

from metatrain.plugins import by_name, installed
from worker.kinds.kind import TaskKind
from worker.kinds.text_classification import TextClassification

ENTRY_POINTS = "quickstudy.task_kinds"
_OWN: tuple[TaskKind, ...] = (TextClassification(),)


@cache
def task_kinds() -> dict[str, TaskKind]:
    """Return the product's own kinds, and those of installed packages (entry points named `quickstudy.task_kinds`)."""
    found = [*_OWN, *(make() for _, make in installed(ENTRY_POINTS))]
    return by_name(((kind.name, kind) for kind in found), ENTRY_POINTS)
