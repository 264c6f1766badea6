"""All kinds of readouts by name. A new one is a file beside this one and a line here, or an entry point of another package."""

from functools import cache
from importlib.metadata import entry_points

from metatrain.readouts.classes import ClassAnswers, ClassReadout
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.readouts.readout import ReadoutKind

CLASSES = "classes"
_OWN = {CLASSES: ReadoutKind(HEAD_LEAVES, ClassReadout, ClassAnswers())}
ENTRY_POINTS = "quickstudy.readouts"


@cache
def readout_kinds() -> dict[str, ReadoutKind]:
    """Return the product's own readouts, and those of installed packages (entry points named `quickstudy.readouts`)."""
    points = entry_points(group=ENTRY_POINTS)
    names = [*_OWN, *(point.name for point in points)]
    if len(set(names)) < len(names):
        raise ValueError(f"entry points {ENTRY_POINTS}: two readouts have one name, of {', '.join(names)}")
    return {**_OWN, **{point.name: point.load() for point in points}}
