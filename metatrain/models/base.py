"""A base model: a frozen backbone, the encoder of its inputs, and the spec that identifies both."""

import fnmatch
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from metatrain.deltas import Delta, DeltaKind
from metatrain.errors import BaseModelError
from metatrain.models import source
from metatrain.models.backbone import Attention, Backbone
from metatrain.models.batch import Batch
from metatrain.models.description import shapes_of
from metatrain.models.inputs import AnySpec, Inputs
from metatrain.models.layout import read_layout
from metatrain.models.weights import load_model


class Base:
    """A frozen base model in memory, with the encoder of its inputs. Thread-safe.

    `inputs.encode` turns raw examples into rows, `collate` rows into batches, and `backbone.hidden` runs the model on them.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, *, attention: Attention) -> None:
        self.inputs = inputs

        def sample(packed: bool) -> Batch:
            return inputs.collate(inputs.sample()[:2], packed=packed)

        self.backbone = Backbone(model, attention=attention, sample=sample)

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
    def feature_size(self) -> int:
        """F, the number of features of an example, which readouts see."""
        return self.inputs.feature_size

    @property
    def precision(self) -> str:
        """The dtype of the weights, by its name in recipes and adapters: `float32` or `bfloat16`."""
        return self.backbone.precision

    @cached_property
    def digest(self) -> str:
        """The full base digest: a sha256 over everything that features depend on (`Spec.digest`)."""
        return self.spec.digest(self.precision)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by name."""
        return shapes_of(self.model)

    def attach(self, config: Any) -> DeltaKind:
        """Set up the delta kind that a `DeltaConfig` describes, and register its hooks on this model.

        Later calls with an equal configuration return the same object and register nothing. Raises UnsupportedDelta if the delta
        does not fit the model.
        """
        return self.backbone.attach(config)

    def collate(self, rows: Sequence[Any], groups: int = 1, *, per_token: bool = True) -> Batch:
        """Combine B encoded rows into a batch.

        They are packed if the model computes the same for packed rows, otherwise padded. `per_token`: False for a delta that does
        not act on each token by itself (`DeltaKind.per_token`), so that rows are padded. `rows`, `groups`: see `Inputs.collate`.
        """
        return self.inputs.collate(rows, groups, packed=per_token and self.backbone.packs)

    def features(
        self,
        delta: Delta | None,
        batch: Batch,
        slots: Sequence[int] | None = None,
        updated: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Run the model on a batch and return pooled features of length 1, [B, F], at least float32.

        See `Backbone.hidden` for the arguments.
        """
        return self.backbone.hidden(delta, batch, slots=slots, updated=updated).features

    def parameters(self, patterns: Sequence[str]) -> dict[str, Tensor]:
        """Return CPU copies of the parameters whose names match one of the patterns, at least float32.

        A pattern is a shell pattern, for example `encoder.layer.5.*`. The values are the exact ones of the model's files, even if
        the model runs in bfloat16. Raises BaseModelError if a pattern matches no parameter.
        """
        model = self.model
        if self.dtype == torch.bfloat16:  # training starts from the exact parameters, not from values rounded to bfloat16
            folder = read_layout(source.locate(self.spec.model)).transformer
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            model = load_model(folder, config, dtype=torch.float32, attention="eager")
        parameters = dict(model.named_parameters())
        for pattern in patterns:
            if not fnmatch.filter(parameters, pattern):
                raise BaseModelError(
                    f"base.updated: no parameter of {self.spec.model} matches {pattern!r}; one is {next(iter(parameters))}"
                )
        matched = [name for name in parameters if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        dtype = torch.promote_types(self.dtype, torch.float32)
        return {name: parameters[name].detach().clone().to("cpu", dtype) for name in matched}
