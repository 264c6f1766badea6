"""Notes on an adapter: its name, tags and parent. They are not part of its id."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Notes:
    """Changes to the notes of an adapter. None leaves a note unchanged; an empty value removes it.

    `parent`: the adapter whose examples this one extends.
    """

    name: str | None = None
    tags: tuple[str, ...] | None = None
    parent: str | None = None

    def flat(self) -> list[str]:
        """Return [field, value, field, value, …], the form that the Lua scripts expect."""
        tags = None if self.tags is None else json.dumps(self.tags) if self.tags else ""
        notes = (("name", self.name), ("tags", tags), ("parent", self.parent))
        return [part for field, value in notes if value is not None for part in (field, value)]
