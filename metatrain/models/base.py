"""A base model: a frozen backbone, the inputs that feed it, and the spec that identifies both."""

import fnmatch
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from metatrain.deltas import Delta, DeltaKind
from metatrain.errors import BaseModelError
from metatrain.models import source
from metatrain.models.backbone import Attention, Backbone, Batch
from metatrain.models.inputs import AnySpec, Inputs


class Base:
    """One resident base model. Thread-safe.

    `inputs.encode` and `inputs.collate` turn raw examples into batches; `backbone.hidden` runs the model on them.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, *, attention: Attention) -> None:
        self.inputs = inputs
        self.backbone = Backbone(model, attention=attention, sample=lambda: inputs.collate(inputs.sample()[:2]))

    @property
    def spec(self) -> AnySpec:
        return self.inputs.spec

    @property
    def model(self) -> nn.Module:
        return self.backbone.model

    @property
    def attention(self) -> Attention:
        return self.backbone.attention

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def hidden_size(self) -> int:
        """D, the width of a hidden state."""
        return self.backbone.hidden_size

    @property
    def precision(self) -> str:
        """The dtype of the weights as recipes and adapters name it: `float32` or `bfloat16`."""
        return self.backbone.precision

    @cached_property
    def digest(self) -> str:
        """The full base digest: weights, inputs and precision."""
        return self.spec.digest(self.precision)

    def attach(self, config: Any) -> DeltaKind:
        """Return the delta kind of a `DeltaConfig` on this model, and hook its sites once.

        Raises UnsupportedDelta if the delta does not fit the model.
        """
        return self.backbone.attach(config)

    def features(
        self,
        delta: Delta | None,
        batch: Batch,
        slots: Tensor | None = None,
        updated: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Return pooled features of length 1, [B, D], at least float32.

        The arguments are those of `Backbone.hidden`.
        """
        return self.backbone.hidden(delta, batch, slots=slots, updated=updated).features

    def parameters(self, patterns: Sequence[str]) -> dict[str, Tensor]:
        """Return CPU copies of the parameters whose names match a shell pattern, at least float32.

        A pattern is for example `encoder.layer.5.*`. Raises BaseModelError for a pattern without a match.
        """
        model = self.model
        if self.dtype == torch.bfloat16:  # training starts from the exact parameters, not from values rounded to bfloat16
            folder = source.locate(self.spec.model)
            model = AutoModel.from_pretrained(folder, **source.LOCAL, dtype=torch.float32)
        parameters = dict(model.named_parameters())
        for pattern in patterns:
            if not fnmatch.filter(parameters, pattern):
                raise BaseModelError(
                    f"base.updated: no parameter of {self.spec.model} matches {pattern!r}; one is {next(iter(parameters))}"
                )
        matched = [name for name in parameters if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        dtype = torch.promote_types(self.dtype, torch.float32)
        return {name: parameters[name].detach().clone().to("cpu", dtype) for name in matched}
