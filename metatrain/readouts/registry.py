"""All readouts by name. A new kind is one file beside this one and one line here, or an entry point of another package."""

from collections.abc import Callable

from metatrain.inner.config import InnerConfig
from metatrain.readouts.classes import ClassReadout
from metatrain.readouts.readout import Readout

READOUTS: dict[str, Callable[[InnerConfig, int], Readout]] = {"classes": ClassReadout}
"""What makes a readout of an inner configuration, for support sets of so many rows."""
