"""Events of long runs, for whoever shows or logs them."""

from collections.abc import Callable
from typing import Any

OnEvent = Callable[[dict[str, Any]], None]
"""Is called with each event of a run: a step, a validation, a candidate of a search. Its `event` says which."""
