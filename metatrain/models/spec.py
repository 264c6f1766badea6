"""What identifies a base model, whatever its inputs are."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """The name of a base model and all that its hidden states depend on; each kind of inputs adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        """All but the name: two base models that agree in it give the same features."""
        return self.model_dump(exclude={"model"})

    def digest(self, precision: str) -> str:
        """The full base digest: sha256 over the identity and the precision that the weights run in.

        Queues, banks, predictors and catalogs are kept apart by it: two poolings of the same weights are two base models.
        """
        content = {**self.identity, "precision": precision}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
