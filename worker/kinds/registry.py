"""The registry of task kinds, by name.

To add a kind, add a file beside this one and an entry in `_BUILT_IN`, or install a package with an entry point.
"""

from functools import cache

from metatrain.plugins import by_own_name, with_installed
from worker.kinds.kind import TaskKind
from worker.kinds.text_classification import TextClassification

ENTRY_POINTS = "quickstudy.task_kinds"
_BUILT_IN: dict[str, TaskKind] = {kind.name: kind for kind in (TextClassification(),)}


@cache
def task_kinds() -> dict[str, TaskKind]:
    """Return the built-in task kinds and those of installed packages, by name.

    A package registers a kind as an entry point in the group `quickstudy.task_kinds`. Raises PluginError if an entry point cannot
    be loaded, is not a TaskKind, or repeats a name.
    """
    return with_installed(_BUILT_IN, ENTRY_POINTS, TaskKind, by_own_name)
