"""All kinds of readouts by name. A new one is a file beside this one and a line here, or an entry point of another package."""

from functools import cache
from typing import Annotated

from pydantic import AfterValidator

from metatrain.plugins import by_name, installed
from metatrain.readouts.classes import ClassAnswers, ClassReadout
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.readouts.readout import ReadoutKind

CLASSES = "classes"
_OWN = {CLASSES: ReadoutKind(HEAD_LEAVES, ClassReadout, ClassAnswers())}
ENTRY_POINTS = "quickstudy.readouts"


@cache
def readout_kinds() -> dict[str, ReadoutKind]:
    """Return the product's own readouts, and those of installed packages (entry points named `quickstudy.readouts`)."""
    return by_name([*_OWN.items(), *installed(ENTRY_POINTS)], ENTRY_POINTS)


def _known(name: str) -> str:
    if name not in readout_kinds():
        raise ValueError(f"expected one of {', '.join(readout_kinds())}, got {name[:80]!r}")
    return name


ReadoutName = Annotated[str, AfterValidator(_known)]  # a field of a file, checked when it is read
