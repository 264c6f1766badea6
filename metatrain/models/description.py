"""Base models without their weights: what identifies them, and the shapes that fit them."""

from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import nn

from metatrain.deltas import DeltaKind, build
from metatrain.models.inputs import AnySpec, Inputs


class BaseDescription(Protocol):
    """The part of a base model for which no weights are needed.

    It is enough to check requests, to read initializations and to know the size of an adapter. `metatrain.models.base.Base` is a
    description too; `UnloadedBase` is only this.
    """

    inputs: Inputs

    @property
    def spec(self) -> AnySpec:
        """The spec that identifies the base model."""

    @property
    def hidden_size(self) -> int:
        """D, the width of a hidden state."""

    @property
    def feature_size(self) -> int:
        """F, the number of features of an example, which readouts see."""

    @property
    def precision(self) -> str:
        """The dtype of the weights, by its name in recipes and adapters: `float32` or `bfloat16`."""

    @property
    def digest(self) -> str:
        """The full base digest (`Spec.digest`)."""

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by name."""

    def attach(self, config: Any) -> DeltaKind:
        """Set up the delta kind that a `DeltaConfig` describes.

        Raises UnsupportedDelta if the delta does not fit the model.
        """


class UnloadedBase:
    """A base model whose weights are not in memory. Thread-safe.

    `architecture`: the model on PyTorch's meta device, so that its parameters have shapes and no values. `precision`: the dtype
    that the weights have where they are loaded, as in `Base.precision`.
    """

    def __init__(self, architecture: nn.Module, inputs: Inputs, precision: str) -> None:
        if any(parameter.device != torch.device("meta") for parameter in architecture.parameters()):
            raise ValueError("architecture: expected all parameters on the meta device")
        self.inputs, self._architecture, self._precision = inputs, architecture.requires_grad_(False), precision

    @property
    def spec(self) -> AnySpec:
        return self.inputs.spec

    @property
    def hidden_size(self) -> int:
        return int(cast(Any, self._architecture).config.hidden_size)

    @property
    def feature_size(self) -> int:
        return self.inputs.feature_size

    @property
    def precision(self) -> str:
        return self._precision

    @cached_property
    def digest(self) -> str:
        return self.spec.digest(self.precision)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self._architecture)

    def attach(self, config: Any) -> DeltaKind:
        """Set up the delta kind that a `DeltaConfig` describes, for its shapes; nothing runs on this model.

        Raises UnsupportedDelta if the delta does not fit the model.
        """
        return build(config, self._architecture)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters of a model, by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
