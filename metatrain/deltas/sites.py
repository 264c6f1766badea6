"""Sites: the layers of a base model on which a delta can act.

A site computes y = W x + b separately for each token, patch or pixel x. It is an `nn.Linear`, a `Conv1D` of transformers (GPT-2;
its weight is [D_in, D_out]) or a 1x1 `nn.Conv2d`. The first axis of its input is the batch. For a delta kind, the input is reshaped
to [N, D]: N positions in all rows together, and D channels. The groups of the call (`groups.py`) state which positions use which
delta.

To support another type of layer, register a function that returns its `Site` with `site_of.register`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from metatrain.deltas.groups import Groups
from metatrain.errors import UnsupportedDelta

_SUPPORTED = "nn.Linear, Conv1D or 1x1 nn.Conv2d (stride 1, groups 1, no padding)"


class Layout(Protocol):
    """The order of the axes in a layer's inputs and outputs, and their conversion to a matrix of tokens.

    Delta kinds compute on [N, D]: N positions in all rows together, one row after the other, and D channels.
    """

    def tokens(self, x: Tensor, groups: Groups) -> Tensor:
        """Reshape a layer's input or output `x` to [N, D].

        Raises UnsupportedDelta if the positions of `x` cannot be divided into `groups`.
        """

    def restored(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Reshape a tensor [N, D] to the shape of `like`: the inverse of the method `tokens`."""


class ChannelsLast:
    """The layout [B, …, D], with the channels on the last axis."""

    def tokens(self, x: Tensor, groups: Groups) -> Tensor:
        groups.check(x)
        return x.reshape(-1, x.shape[-1])

    def restored(self, tokens: Tensor, like: Tensor) -> Tensor:
        return tokens.view_as(like)


class ChannelsFirst:
    """The layout [B, D, H, W] of a convolution, with the channels on the second axis."""

    def tokens(self, x: Tensor, groups: Groups) -> Tensor:
        if x.dim() != 4:
            raise UnsupportedDelta(f"a convolution must be called with maps [B, D, H, W], got {x.dim()} axes")
        groups.check(x)
        return x.movedim(1, -1).reshape(-1, x.shape[1])

    def restored(self, tokens: Tensor, like: Tensor) -> Tensor:
        rows, channels, height, width = like.shape
        return tokens.view(rows, height, width, channels).movedim(-1, 1)


@dataclass(frozen=True)
class Site:
    """A layer on which a delta acts.

    `kernel`: the axes of the layer's weight after [D_out, D_in]: (1, 1) for a convolution, otherwise empty. PEFT's leaves for the
    layer have these axes too. `transposed`: True if the weight is [D_in, D_out], which PEFT calls `fan_in_fan_out`.
    """

    module: nn.Module
    in_features: int
    out_features: int
    layout: Layout
    kernel: tuple[int, ...] = ()
    transposed: bool = False


@singledispatch
def site_of(module: nn.Module) -> Site | None:
    """Describe a module as a site. Return None if no delta can act on a module of this type."""
    return None


@site_of.register(nn.LazyLinear)
@site_of.register(nn.LazyConv2d)
def _lazy(_module: nn.Module) -> None:
    return None  # the sizes of such a layer are known only after its first call, when it becomes an nn.Linear or nn.Conv2d


@site_of.register
def _linear(module: nn.Linear) -> Site:
    return Site(module, module.in_features, module.out_features, ChannelsLast())


@site_of.register(Conv1D)
def _conv1d(module: Any) -> Site:
    return Site(module, module.nx, module.nf, ChannelsLast(), transposed=True)


@site_of.register
def _conv2d(module: nn.Conv2d) -> Site | None:
    plain = module.kernel_size == module.stride == (1, 1) and module.groups == 1 and module.padding in ((0, 0), "same", "valid")
    return Site(module, module.in_channels, module.out_channels, ChannelsFirst(), kernel=(1, 1)) if plain else None


def find_sites(model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None) -> dict[str, Site]:
    """Return the sites whose module names end in one of `targets`, in the order of the targets.

    A target has to match whole parts of the dotted name: `dense` matches `output.dense`, but not `predense`. `layers`: the numbers
    of the layers (`layer_of`) to search; None searches all. Matching modules of unsupported types are ignored. Raises
    UnsupportedDelta if a target or a layer matches no site.
    """
    sites: dict[str, Site] = {}
    for target in targets:
        named = {n: m for n, m in model.named_modules() if n == target or n.endswith("." + target)}
        matched = {n: m for n, m in named.items() if layers is None or layer_of(n) in layers}
        target_sites = {n: site for n, m in matched.items() if (site := site_of(m)) is not None}
        if not target_sites:
            types = sorted({type(m).__name__ for m in matched.values()}) or ["no module"]
            raise UnsupportedDelta(
                f"delta.targets: {target!r} must match {_SUPPORTED} modules of {type(model).__name__}, matched {', '.join(types)}"
            )
        sites |= target_sites
    unmatched = set(layers or ()) - {layer_of(name) for name in sites}
    if unmatched:
        raise UnsupportedDelta(f"delta.layers: {type(model).__name__} has no layer {min(unmatched)} with these targets")
    return sites


def fan_in_fan_out(sites: Iterable[Site]) -> dict[str, Any]:
    """Return the entry `fan_in_fan_out` of PEFT's configuration, or an empty dict if no site needs it.

    PEFT needs the entry for weights that are [D_in, D_out] instead of [D_out, D_in].
    """
    return {"fan_in_fan_out": True} if any(site.transposed for site in sites) else {}


def layer_of(module_name: str) -> int | None:
    """Return the number of the layer that contains a module: the first number in its name, or None.

    In a model with one stack of layers, this is the number of the layer (`encoder.layer.3.…`, `layers.3.…`, `h.3.…`,
    `encoder.blocks.3.…`). In a model with stages (`encoder.stages.1.layers.3.…`) it is the number of the stage. In a model with
    several stacks, the number does not tell the stack: layer 3 of the encoder and layer 3 of the decoder both give 3.
    """
    return next((int(part) for part in module_name.split(".") if part.isdigit()), None)


def lowest_layer(sites: Iterable[str]) -> int:
    """Return the number of the lowest layer that contains a site.

    The layers below it do not depend on the sites. Returns 0 if there are no sites, or if a site is outside the numbered layers.
    """
    return min((layer_of(name) or 0 for name in sites), default=0)
