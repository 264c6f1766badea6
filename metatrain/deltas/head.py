"""The empty delta: adaptation trains only the head, on the features of the unchanged base model."""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from metatrain.deltas.scope import Delta


class HeadConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = False

    kind: Literal["head"] = "head"


class HeadOnly:
    """A delta without leaves (parameters) and without sites (adapted layers). It fits every model."""

    per_token: ClassVar[bool] = True

    def __init__(self, config: HeadConfig, model: nn.Module) -> None:
        self.config = config
        self.sites: dict[str, nn.Module] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    @property
    def lowest_layer(self) -> int:
        return 0

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        return {}

    def attach(self, sites: Iterable[str]) -> None:
        pass

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        return {}

    @property
    def counts(self) -> dict[str, int]:
        return {}

    @property
    def peft(self) -> None:
        """None, because PEFT has no file format for a delta without leaves."""
