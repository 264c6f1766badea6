"""All kinds of tasks by name. A new one is a file beside this one and a line here, or an entry point of another package."""

from functools import cache
from importlib.metadata import entry_points

from worker.kinds.kind import TaskKind
from worker.kinds.text_classification import TextClassification

ENTRY_POINTS = "quickstudy.task_kinds"
_OWN: tuple[TaskKind, ...] = (TextClassification(),)


@cache
def task_kinds() -> dict[str, TaskKind]:
    """Return the product's own kinds, and those of installed packages (entry points named `quickstudy.task_kinds`)."""
    found: list[TaskKind] = [*_OWN, *(point.load()() for point in entry_points(group=ENTRY_POINTS))]
    kinds = {kind.name: kind for kind in found}
    if len(kinds) < len(found):
        raise ValueError(
            f"entry points {ENTRY_POINTS}: two kinds of tasks have one name, of {', '.join(kind.name for kind in found)}"
        )
    return kinds
