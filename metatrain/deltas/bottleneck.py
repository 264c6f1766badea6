"""Bottleneck adapters for several tasks at once: each leaf has a leading task axis.

    y ← y + U · gelu(V y + c) + b          V: [R, D], c: [R], U: [D, R], b: [D]          y: the output of a target module

The update comes before the residual connection and its layer norm (Houlsby et al. 2019, arXiv:1902.00751, §2.1). By default U
starts at zero, so that the base model is unchanged. PEFT has no such kind.
"""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from metatrain.deltas.scope import Delta, current_delta, current_groups
from metatrain.deltas.sites import Layout, Site, find_sites, lowest_layer


class BottleneckConfig(BaseModel):
    """The configuration of bottleneck adapters.

    `rank`: R, the width of the bottleneck. `targets`: suffixes of the names of the adapted modules, matched at a dot. By default
    these are the last layers of each attention and feed-forward block in BERT-like models. `layers`: the numbers of the layers
    (`sites.layer_of`) to adapt; None adapts all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = True

    kind: Literal["bottleneck"] = "bottleneck"
    rank: int = Field(default=16, ge=1, le=256)
    targets: tuple[str, ...] = Field(default=("output.dense",), min_length=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)


class Bottleneck:
    """Bottleneck adapters on one base model (a `DeltaKind`).

    Leaves: `{module}.down.weight` V [R, D], `{module}.down.bias` c [R], `{module}.up.weight` U [D, R], `{module}.up.bias` b [D].
    Raises UnsupportedDelta if a target matches no layer of a supported type (`sites.py`).
    """

    per_token: ClassVar[bool] = True

    def __init__(self, config: BottleneckConfig, model: nn.Module) -> None:
        self.config = config
        self.sites: dict[str, Site] = find_sites(model, config.targets, config.layers)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, site in self.sites.items():
            self.shapes[f"{name}.down.weight"] = (config.rank, site.out_features)
            self.shapes[f"{name}.down.bias"] = (config.rank,)
            self.shapes[f"{name}.up.weight"] = (site.out_features, config.rank)
            self.shapes[f"{name}.up.bias"] = (site.out_features,)

    @property
    def lowest_layer(self) -> int:
        return lowest_layer(self.sites)

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw initial leaves θ for one task, float32.

        V is Kaiming uniform (a = √5), U is normal with the standard deviation `b_std`, and the biases c and b are zero.
        """
        theta = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for name, leaf in theta.items():
            if name.endswith("down.weight"):
                nn.init.kaiming_uniform_(leaf, a=math.sqrt(5), generator=generator)
            elif name.endswith("up.weight") and b_std > 0:
                leaf.normal_(0.0, b_std, generator=generator)
        return theta

    def attach(self, sites: Iterable[str]) -> None:
        for site in sites:
            self.sites[site].module.register_forward_hook(_bottleneck_hook(site, self.sites[site].layout))

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        return dict(delta)

    @property
    def counts(self) -> dict[str, int]:
        return {}

    @property
    def peft(self) -> None:
        """None, because PEFT has no file format for bottleneck adapters."""


def _bottleneck_hook(site: str, layout: Layout) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    def add_bottleneck(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        delta = current_delta()
        if delta is None or f"{site}.down.weight" not in delta:
            return None
        v, c, u, b = (delta[f"{site}.{part}"].to(output.dtype) for part in ("down.weight", "down.bias", "up.weight", "up.bias"))
        groups = current_groups(len(v))
        low = nn.functional.gelu(groups.affine(layout.tokens(output, groups), v.transpose(1, 2), c))
        return output + layout.restored(groups.affine(low, u.transpose(1, 2), b), output)

    return add_bottleneck
