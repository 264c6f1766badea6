"""The interface of a delta kind (named leaves, a start, hooks that apply them, its names in PEFT), and all kinds by name."""

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
    """One kind of delta on one base model. Leaves have no task axis in `shapes`; every call takes them with one."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def config(self) -> Any:
        """A `DeltaConfig`."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """The places in the model that are hooked, by module name."""

    @property
    def lowest_layer(self) -> int:
        """The layer of the base model below which nothing depends on the delta."""

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw a fresh θ, one task, float32; `b_std`: the spread of what would otherwise start at the base model itself."""

    def attach(self, sites: Iterable[str]) -> None:
        """Hook these of the sites. A site without leaves in the delta of a call is left as it is."""

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        """Return what the modules read; leaves that are all zero then leave a row alone, but for `counts`."""

    @property
    def counts(self) -> dict[str, int]:
        """What a call needs beside the leaves if groups with other numbers of virtual tokens, or of other kinds, are in it too.

        By leaf name, this kind's number of virtual tokens; the call takes a leaf [G] with the number of each group.
        """

    @property
    def peft(self) -> PeftFiles | None:
        """θ as PEFT's own files; None where PEFT has no such kind, or computes something else on this model."""


def _kind_of(value: Any) -> str:
    """Read the kind of a configuration; LoRA where none is given."""
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
    """Make the delta kind of a `DeltaConfig` on a model. Raises UnsupportedDelta where the model has no place for it."""
    kind: DeltaKind = KINDS[config.kind](config, model)
    return kind
