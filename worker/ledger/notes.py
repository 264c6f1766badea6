"""Notes on an adapter: name, tags and parent, which are no part of its id. Torch-free."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Notes:
    """Changes of notes: None leaves a note, an empty one removes it. `parent`: the adapter that this one adds examples to."""

    name: str | None = None
    tags: tuple[str, ...] | None = None
    parent: str | None = None

    def flat(self) -> list[str]:
        """Return field, value, field, value … as the scripts take them."""
        tags = None if self.tags is None else json.dumps(self.tags) if self.tags else ""
        noted = (("name", self.name), ("tags", tags), ("parent", self.parent))
        return [part for field, value in noted if value is not None for part in (field, value)]
