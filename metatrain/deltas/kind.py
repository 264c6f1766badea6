"""The interface of a delta kind (leaves, initial values, hooks, PEFT files), and all kinds by name."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Protocol

import torch
from pydantic import Discriminator, Tag
from torch import Tensor, nn

from metatrain.deltas.bottleneck import Bottleneck, BottleneckConfig
from metatrain.deltas.head import HeadConfig, HeadOnly
from metatrain.deltas.ia3 import IA3, IA3Config
from metatrain.deltas.lora import LoRA, LoRAConfig
from metatrain.deltas.peft_format import PeftFiles
from metatrain.deltas.prefix import Prefix, PrefixConfig
from metatrain.deltas.prompt import Prompt, PromptConfig
from metatrain.deltas.scope import Delta


class DeltaKind(Protocol):
    """One kind of delta on one base model.

    `shapes`: the leaves of one task, without a task axis. Calls of the model take leaves with a leading task axis.
    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def config(self) -> Any:
        """The configuration, a `DeltaConfig`."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """The hooked places in the model, by module name."""

    @property
    def lowest_layer(self) -> int:
        """The layer of the base model below which nothing depends on the delta."""

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw a new θ for one task, float32.

        `b_std`: the standard deviation of the leaves that start at the unchanged base model if it is 0.
        """

    def attach(self, sites: Iterable[str]) -> None:
        """Register hooks on these sites. A site without leaves in the delta of a call is unchanged."""

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        """Return the leaves as the hooks read them. Zeros, with `counts` of 0, leave a row unchanged."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of virtual tokens, by the names of the leaves that carry it; empty if there are none.

        A call whose groups have different numbers of virtual tokens, or deltas of different kinds, needs these leaves too: [G],
        with the number of each group.
        """

    @property
    def peft(self) -> PeftFiles | None:
        """The format of θ in PEFT's files; None if PEFT has no such kind or computes something else here."""


def _kind_of(value: Any) -> str:
    """Return the kind of a configuration, "lora" if it names none."""
    return str(value.get("kind", "lora") if isinstance(value, dict) else getattr(value, "kind", value))


DeltaConfig = Annotated[
    Annotated[LoRAConfig, Tag("lora")]
    | Annotated[BottleneckConfig, Tag("bottleneck")]
    | Annotated[PrefixConfig, Tag("prefix")]
    | Annotated[PromptConfig, Tag("prompt")]
    | Annotated[IA3Config, Tag("ia3")]
    | Annotated[HeadConfig, Tag("head")],
    Discriminator(_kind_of),
]

KINDS: dict[str, Any] = {
    "lora": LoRA,
    "bottleneck": Bottleneck,
    "prefix": Prefix,
    "prompt": Prompt,
    "ia3": IA3,
    "head": HeadOnly,
}


def build(config: Any, model: nn.Module) -> DeltaKind:
    """Make the delta kind of a `DeltaConfig` on a model. Raises UnsupportedDelta if it does not fit."""
    kind: DeltaKind = KINDS[config.kind](config, model)
    return kind
