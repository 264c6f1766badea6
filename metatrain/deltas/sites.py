"""Where in a base model a delta acts."""

from collections.abc import Sequence

from torch import nn

from metatrain.errors import UnsupportedDelta


def linear_sites(model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None) -> dict[str, nn.Linear]:
    """The `nn.Linear` modules whose names end in one of `targets` (matched at a dot), those of `layers` where it is not None; by
    name, in the order of the targets. Raises UnsupportedDelta where a target or a layer matches none."""
    sites: dict[str, nn.Linear] = {}
    for target in targets:
        named = {n: m for n, m in model.named_modules() if n == target or n.endswith("." + target)}
        matched = {n: m for n, m in named.items() if layers is None or layer_of(n) in layers}
        linears = {n: m for n, m in matched.items() if isinstance(m, nn.Linear)}
        if not linears:
            kinds = sorted({type(m).__name__ for m in matched.values()}) or ["no module"]
            raise UnsupportedDelta(
                f"delta.targets: {target!r} must match nn.Linear modules of {type(model).__name__}, matched {', '.join(kinds)}"
            )
        sites |= linears
    unmatched = set(layers or ()) - {layer_of(name) for name in sites}
    if unmatched:
        raise UnsupportedDelta(f"delta.layers: {type(model).__name__} has no layer {min(unmatched)} with these targets")
    return sites


def layer_of(module_name: str) -> int | None:
    """The number of the layer that a module is in: the first number in its name."""
    return next((int(part) for part in module_name.split(".") if part.isdigit()), None)


def lowest_layer(sites: Sequence[str]) -> int:
    """Nothing below this layer depends on what happens at the sites; 0 where one is in no numbered layer."""
    return min((layer_of(name) or 0 for name in sites), default=0)
