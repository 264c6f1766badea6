"""A base model: a frozen backbone, the inputs that feed it, and what identifies both."""

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
    """One resident base model. Safe to call from several threads at once.

    `inputs.encode` and `inputs.collate` make batches of raw examples; `backbone.hidden` runs them.
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
        """D"""
        return self.backbone.hidden_size

    @property
    def precision(self) -> str:
        """The dtype of the weights, as recipes and adapters name it: `float32`, `bfloat16`."""
        return self.backbone.precision

    @cached_property
    def digest(self) -> str:
        """The full base digest: weights, inputs and precision."""
        return self.spec.digest(self.precision)

    def attach(self, config: Any) -> DeltaKind:
        """Return the delta kind of a `DeltaConfig` on this model; hook its sites the first time. Raises UnsupportedDelta."""
        return self.backbone.attach(config)

    def features(
        self,
        delta: Delta | None,
        batch: Batch,
        slots: Tensor | None = None,
        updated: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Pooled features of length 1, [B, D], at least float32. Arguments as `Backbone.hidden`."""
        return self.backbone.hidden(delta, batch, slots=slots, updated=updated).features

    def parameters(self, patterns: Sequence[str]) -> dict[str, Tensor]:
        """Copy the parameters whose names match one of the shell patterns (`encoder.layer.5.*`) to the CPU, at least float32.

        Raises BaseModelError for a pattern that matches none.
        """
        model = self.model
        if self.dtype == torch.bfloat16:  # what is learned starts from the parameters themselves, not from their rounding
            folder = source.locate(self.spec.model)
            model = AutoModel.from_pretrained(folder, **source.LOCAL, dtype=torch.float32)
        own = dict(model.named_parameters())
        for pattern in patterns:
            if not fnmatch.filter(own, pattern):
                raise BaseModelError(
                    f"base.updated: no parameter of {self.spec.model} matches {pattern!r}; one is {next(iter(own))}"
                )
        matched = [name for name in own if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        kept = torch.promote_types(self.dtype, torch.float32)
        return {name: own[name].detach().clone().to("cpu", kept) for name in matched}
