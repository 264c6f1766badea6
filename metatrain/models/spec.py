"""The spec that identifies a base model: the fields that all modalities share."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Spec(BaseModel):
    """The name of a base model and everything, except the precision, that its features depend on.

    Each modality adds fields in a subclass. A field at its default is absent from digests and files, so that a field can be added
    without a change to those of the base models that do not use it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        unset = {name for name in fields if not fields[name].is_required() and getattr(self, name) == fields[name].default}
        return {name: value for name, value in content.items() if name not in unset}

    @property
    def identity(self) -> dict[str, Any]:
        """All fields except the name, as JSON values.

        Base models with equal identities compute the same features.
        """
        return self.model_dump(mode="json", exclude={"model"})

    def digest(self, precision: str) -> str:
        """Return the full base digest: the sha256 of the identity and the precision of the weights.

        `precision`: `float32` or `bfloat16`. Each full base digest has its own queue, bank, predictor and catalog. The same weights
        with two poolings are two base models.
        """
        content = {**self.identity, "precision": precision}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
