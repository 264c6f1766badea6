"""(IA)³, learned vectors that rescale activations, for several tasks at once: leaves have a task axis.

    y = l ⊙ (W x)     for keys and values          y = W (l ⊙ x)     for the feed-forward modules          l starts at one

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", arXiv:2205.05638, §3.3.
As in PEFT, feed-forward modules are rescaled on their input and all others on their output. The leaves have PEFT's names and
shapes.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from metatrain.deltas.peft_format import PeftFiles, in_module, leaf_by_leaf
from metatrain.deltas.scope import Delta, current_delta, current_groups
from metatrain.deltas.sites import Layout, Site, fan_in_fan_out, find_sites, lowest_layer
from metatrain.errors import UnsupportedDelta


class IA3Config(BaseModel):
    """The configuration of an (IA)³.

    `targets`: suffixes of the names of the rescaled modules, matched at a dot. `feedforward`: the targets that are rescaled on
    their input; the others are rescaled on their output. PEFT calls these two fields `target_modules` and `feedforward_modules`.
    `layers`: the numbers of the layers (`sites.layer_of`) to adapt; None adapts all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = True

    kind: Literal["ia3"] = "ia3"
    targets: tuple[str, ...] = Field(default=("key", "value", "intermediate.dense"), min_length=1)
    feedforward: tuple[str, ...] = ("intermediate.dense",)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _feedforward_are_targets(self) -> "IA3Config":
        unknown = [name for name in self.feedforward if name not in self.targets]
        if unknown:
            raise ValueError(f"feedforward: expected some of the targets ({', '.join(self.targets)}), got {unknown[0]!r}")
        return self


class IA3:
    """(IA)³ on one base model (a `DeltaKind`).

    Leaves: `{module}.ia3_l` l, [D_out, 1], or [1, D_in] for a feed-forward module. Raises UnsupportedDelta if a target matches no
    layer of a supported type (`sites.py`), or if it matches a layer with a single channel to rescale. The leaf of such a layer
    would be [1, 1], a shape that does not show whether to rescale the input or the output.
    """

    per_token: ClassVar[bool] = True

    def __init__(self, config: IA3Config, model: nn.Module) -> None:
        self.config = config
        self.sites: dict[str, Site] = find_sites(model, config.targets, config.layers)
        self.feedforward = set(find_sites(model, config.feedforward, config.layers)) if config.feedforward else set()
        self.shapes: dict[str, tuple[int, ...]] = {
            f"{name}.ia3_l": (1, site.in_features) if name in self.feedforward else (site.out_features, 1)
            for name, site in self.sites.items()
        }
        for name in self.sites:
            if self.shapes[f"{name}.ia3_l"] == (1, 1):
                raise UnsupportedDelta(f"delta.targets: {name} of {type(model).__name__} has a single number to rescale")

    @property
    def lowest_layer(self) -> int:
        return lowest_layer(self.sites)

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw initial leaves θ for one task, float32: ones plus normal noise.

        `b_std`: the standard deviation of the noise.
        """
        return {name: 1 + b_std * torch.randn(shape, generator=generator) for name, shape in self.shapes.items()}

    def attach(self, sites: Iterable[str]) -> None:
        for site in sites:
            module, layout = self.sites[site].module, self.sites[site].layout
            # Register both hooks, because another configuration can rescale the other side of this site. The shape of the leaf in
            # a call decides which hook acts.
            module.register_forward_pre_hook(_input_hook(site, layout))
            module.register_forward_hook(_output_hook(site, layout))

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        """Return l − 1 for each leaf l, so that a row with leaves of zeros runs the unchanged base model."""
        return {name: leaf - 1 for name, leaf in delta.items()}

    @property
    def counts(self) -> dict[str, int]:
        return {}

    @property
    def peft(self) -> PeftFiles:
        fields = {"target_modules": sorted(self.sites), "feedforward_modules": sorted(self.feedforward)}
        essentials = {"peft_type": "IA3", **fields, **fan_in_fan_out(self.sites.values())}
        leaves = {}
        for name, site in self.sites.items():
            shape = self.shapes[leaf := f"{name}.ia3_l"]
            leaves[leaf] = in_module(leaf, (1, max(shape), *site.kernel) if site.kernel else shape)
        return leaf_by_leaf(essentials, self.shapes, leaves)


def _input_hook(site: str, layout: Layout) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
    def rescale_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        delta = current_delta()
        leaf = None if delta is None else delta.get(f"{site}.ia3_l")
        return None if leaf is None or leaf.shape[1] != 1 else (_rescaled(inputs[0], leaf, layout), *inputs[1:])

    return rescale_input


def _output_hook(site: str, layout: Layout) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    def rescale_output(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        delta = current_delta()
        leaf = None if delta is None else delta.get(f"{site}.ia3_l")
        return None if leaf is None or leaf.shape[2] != 1 else _rescaled(output, leaf, layout)

    return rescale_output


def _rescaled(x: Tensor, leaf: Tensor, layout: Layout) -> Tensor:
    """Multiply the channels of each token of `x` by the vector l of the token's group.

    `leaf`: l − 1 of the G groups of the call, [G, D, 1] or [G, 1, D], as returned by `IA3.fold`.
    """
    groups = current_groups(len(leaf))
    factor = 1 + leaf.to(torch.promote_types(leaf.dtype, torch.float32))
    return layout.restored(groups.scaled(layout.tokens(x, groups), factor.to(x.dtype).flatten(1)), x)
