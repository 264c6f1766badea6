"""Where in a base model a delta acts: layers that map the channels of every token, patch or pixel alone, y = W x + b.

Such a layer is an `nn.Linear`, a `Conv1D` of transformers (GPT-2; its weight is [D_in, D_out]) or a 1x1 `nn.Conv2d`. A kind sees
each as a `Site` and does its arithmetic on rows [G, N, D]: G groups of rows of the batch, with N places in all rows of a group. The
first axis of what a site is called with is the batch, and a group is a run of neighbouring rows.

One more type of layer is one more function registered with `site_of`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from metatrain.errors import UnsupportedDelta

_SUPPORTED = "nn.Linear, Conv1D or 1x1 nn.Conv2d (stride 1, groups 1, no padding)"


class Layout(Protocol):
    """Where a layer's inputs and outputs have their channels."""

    def grouped(self, x: Tensor, groups: int) -> Tensor:
        """Return the channels of G groups of rows, [G, N, D]. Raises UnsupportedDelta if the rows of `x` are not in G groups."""

    def ungrouped(self, grouped: Tensor, like: Tensor) -> Tensor:
        """Return [G, N, D] in the shape of `like`, from which it was grouped."""


class ChannelsLast:
    """[B, …, D]"""

    def grouped(self, x: Tensor, groups: int) -> Tensor:
        _check_rows(x, groups)
        return x.reshape(groups, -1, x.shape[-1])

    def ungrouped(self, grouped: Tensor, like: Tensor) -> Tensor:
        return grouped.view_as(like)


class Maps:
    """[B, D, H, W]"""

    def grouped(self, x: Tensor, groups: int) -> Tensor:
        if x.dim() != 4:
            raise UnsupportedDelta(f"a convolution must be called with maps [B, D, H, W], got {x.dim()} axes")
        _check_rows(x, groups)
        return x.movedim(1, -1).reshape(groups, -1, x.shape[1])

    def ungrouped(self, grouped: Tensor, like: Tensor) -> Tensor:
        rows, channels, height, width = like.shape
        return grouped.view(rows, height, width, channels).movedim(-1, 1)


def _check_rows(x: Tensor, groups: int) -> None:
    if x.shape[0] % groups:
        raise UnsupportedDelta(f"a layer is called with {x.shape[0]} rows, which are not {groups} groups of a batch")


@dataclass(frozen=True)
class Site:
    """One layer at which a delta acts.

    `kernel`: the axes that its weight has after [D_out, D_in], all of size 1; PEFT's leaves have them too. `transposed`: its weight
    is [D_in, D_out], which PEFT calls `fan_in_fan_out`.
    """

    module: nn.Module
    in_features: int
    out_features: int
    layout: Layout
    kernel: tuple[int, ...] = ()
    transposed: bool = False


@singledispatch
def site_of(module: nn.Module) -> Site | None:
    """Return a module as a site; None if it is no layer of a supported type."""
    return None


@site_of.register
def _linear(module: nn.Linear) -> Site:
    return Site(module, module.in_features, module.out_features, ChannelsLast())


@site_of.register(Conv1D)
def _conv1d(module: Any) -> Site:
    return Site(module, module.nx, module.nf, ChannelsLast(), transposed=True)


@site_of.register
def _conv2d(module: nn.Conv2d) -> Site | None:
    plain = module.kernel_size == module.stride == (1, 1) and module.groups == 1 and module.padding in ((0, 0), "same", "valid")
    return Site(module, module.in_channels, module.out_channels, Maps(), kernel=(1, 1)) if plain else None


def find_sites(model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None) -> dict[str, Site]:
    """Find the sites whose names end in one of `targets` (matched at a dot), by name, in the order of the targets.

    `layers`: their numbers as `layer_of` gives them, all where None. Modules of other types that a target matches too are left as
    they are. Raises UnsupportedDelta where a target or a layer matches no site.
    """
    sites: dict[str, Site] = {}
    for target in targets:
        named = {n: m for n, m in model.named_modules() if n == target or n.endswith("." + target)}
        matched = {n: m for n, m in named.items() if layers is None or layer_of(n) in layers}
        found = {n: site for n, m in matched.items() if (site := site_of(m)) is not None}
        if not found:
            types = sorted({type(m).__name__ for m in matched.values()}) or ["no module"]
            raise UnsupportedDelta(
                f"delta.targets: {target!r} must match {_SUPPORTED} modules of {type(model).__name__}, matched {', '.join(types)}"
            )
        sites |= found
    unmatched = set(layers or ()) - {layer_of(name) for name in sites}
    if unmatched:
        raise UnsupportedDelta(f"delta.layers: {type(model).__name__} has no layer {min(unmatched)} with these targets")
    return sites


def fan_in_fan_out(sites: Iterable[Site]) -> dict[str, Any]:
    """Return the entry by which PEFT's configuration says that weights are [D_in, D_out]; none where no weight is."""
    return {"fan_in_fan_out": True} if any(site.transposed for site in sites) else {}


def layer_of(module_name: str) -> int | None:
    """Return the number of the layer that a module is in: the first number in its name. None if there is none.

    This is the layer where a model is one stack (`encoder.layer.3.…`, `layers.3.…`, `h.3.…`, `encoder.blocks.3.…`). Where stacks
    stand in stages (`encoder.stages.1.layers.3.…`) it is the stage, and where there are several stacks side by side (`encoder.…`,
    `decoder.…`) layers of one number in all of them are meant.
    """
    return next((int(part) for part in module_name.split(".") if part.isdigit()), None)


def lowest_layer(sites: Iterable[str]) -> int:
    """Return the layer below which nothing depends on what happens at the sites; 0 where one is in no numbered layer."""
    return min((layer_of(name) or 0 for name in sites), default=0)
