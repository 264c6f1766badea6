"""The registry of readout kinds.

To add a kind, write a file in this folder and add a line here, or register an entry point in another package.
"""

from functools import cache
from typing import Annotated

from pydantic import AfterValidator

from metatrain.plugins import with_installed
from metatrain.readouts.classes import ClassAnswers, ClassReadout
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.readouts.readout import ReadoutKind

CLASSES = "classes"
_BUILT_IN = {CLASSES: ReadoutKind(HEAD_LEAVES, ClassReadout, ClassAnswers())}
ENTRY_POINTS = "quickstudy.readouts"


@cache
def readout_kinds() -> dict[str, ReadoutKind]:
    """Return the built-in readouts and those of installed packages, by name.

    Packages add readouts with entry points of the group `quickstudy.readouts`.
    """
    return with_installed(_BUILT_IN, ENTRY_POINTS, ReadoutKind, lambda name, readout: (name, readout))


def _known(name: str) -> str:
    if name not in readout_kinds():
        raise ValueError(f"expected one of {', '.join(readout_kinds())}, got {name[:80]!r}")
    return name


ReadoutName = Annotated[str, AfterValidator(_known)]
"""The name of a readout kind in a file, validated when the file is read."""
