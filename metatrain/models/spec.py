"""The spec that identifies a base model, common to all modalities."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """The name of a base model and everything that its features depend on. Each modality adds fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        """All fields but the name. Base models with equal identities give the same features."""
        return self.model_dump(exclude={"model"})

    def digest(self, precision: str) -> str:
        """Return the full base digest: the sha256 of the identity and the precision of the weights.

        Queues, banks, predictors and catalogs are separate for each digest. The same weights with two poolings are two base models.
        """
        content = {**self.identity, "precision": precision}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
