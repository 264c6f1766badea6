"""The registry of task kinds, by name.

A new kind is a file beside this one and a line here, or an entry point of another package.
"""

from functools import cache

from metatrain.plugins import by_own_name, with_installed
from worker.kinds.kind import TaskKind
from worker.kinds.text_classification import TextClassification

ENTRY_POINTS = "quickstudy.task_kinds"
_BUILT_IN: dict[str, TaskKind] = {kind.name: kind for kind in (TextClassification(),)}


@cache
def task_kinds() -> dict[str, TaskKind]:
    """Return the built-in kinds and those of installed packages, by name.

    Packages register theirs as entry points of the group `quickstudy.task_kinds`. Raises PluginError.
    """
    return with_installed(_BUILT_IN, ENTRY_POINTS, TaskKind, by_own_name)
