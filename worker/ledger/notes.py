"""What is said of an adapter beside its recipe, and is no part of its id. Torch-free."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Notes:
    """None leaves a note as it is, an empty one takes it away. `parent`: the adapter whose examples these go on from."""

    name: str | None = None
    tags: tuple[str, ...] | None = None
    parent: str | None = None

    def flat(self) -> list[str]:
        """Field, value, field, value … as the scripts take them."""
        tags = None if self.tags is None else json.dumps(self.tags) if self.tags else ""
        noted = (("name", self.name), ("tags", tags), ("parent", self.parent))
        return [part for field, value in noted if value is not None for part in (field, value)]
