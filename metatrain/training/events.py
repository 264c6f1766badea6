"""Events of long runs, for progress displays and logs."""

from collections.abc import Callable
from typing import Any

OnEvent = Callable[[dict[str, Any]], None]
"""A callback for each event of a run; its key `event` has the type, such as step, validation or candidate."""
