"""The interface of a delta kind: leaves, initial values, hooks and PEFT files; and all kinds by name.

A delta is the small set of parameters that adaptation trains beside a frozen base model.
"""

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
    """A kind of delta (LoRA, prefix, …), set up for one base model.

    `shapes`: the name and shape of each leaf (parameter tensor) of one task, without a task axis. A call of the model takes leaves
    with a leading task axis.
    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def config(self) -> Any:
        """The `DeltaConfig` from which this kind was built."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """The layers of the base model on which the delta acts, {module name: layer}."""

    @property
    def per_token(self) -> bool:
        """True if the delta acts on each token by itself.

        Rows may then be packed into one sequence of tokens (`packing.py`).
        """

    @property
    def lowest_layer(self) -> int:
        """The number of the lowest layer that depends on the delta; the layers below it do not."""

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw initial leaves θ for one task, float32.

        `b_std`: the standard deviation of the noise on those leaves, such as B in LoRA, that usually start at values that leave the
        base model unchanged. Prefixes and prompts have no such values; for them, 0 selects a standard deviation of 0.02.
        """

    def attach(self, sites: Iterable[str]) -> None:
        """Register hooks on these sites. A hook does nothing in a call whose delta has no leaves for its site."""

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        """Convert leaves to the form that the hooks read.

        In this form, a row whose leaves are all zero, and whose `counts` are 0, runs the unchanged base model.
        """

    @property
    def counts(self) -> dict[str, int]:
        """The delta's number of virtual tokens, {leaf name: number}; empty for a kind without virtual tokens.

        In a call with G groups of rows, a leaf of that name has shape [G] and contains the number for each group. A call needs
        these leaves only if its groups have different numbers of virtual tokens or deltas of different kinds.
        """

    @property
    def peft(self) -> PeftFiles | None:
        """The format of θ in PEFT's files.

        None if PEFT has no such kind, or if PEFT would compute something else on this base model.
        """


def _kind_of(value: Any) -> str:
    """Return the name of a configuration's kind. A dict without the key `kind` is a "lora"."""
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
    """Set up the delta kind that a `DeltaConfig` describes for `model`.

    Raises UnsupportedDelta if the delta does not fit the model.
    """
    kind: DeltaKind = KINDS[config.kind](config, model)
    return kind
