"""The spec that identifies a base model: the fields that all modalities share."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """The name of a base model and everything, except the precision, that its features depend on.

    Each modality adds fields in a subclass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        """All fields except the name. Base models with equal identities compute the same features."""
        return self.model_dump(exclude={"model"})

    def digest(self, precision: str) -> str:
        """Return the full base digest: the sha256 of the identity and the precision of the weights.

        `precision`: `float32` or `bfloat16`. Each full base digest has its own queue, bank, predictor and catalog. The same weights
        with two poolings are two base models.
        """
        content = {**self.identity, "precision": precision}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
