"""A base model cut in two below one of its layers: what the lower part computes does not depend on a delta that begins above it.

The lower part is a run of the whole model that ends where that layer would begin; the upper part is a view of the model that shares
its modules, with the lower layers left out and hidden states in the place of embeddings. Whether the two parts make the whole is
measured on each model (`Backbone.below`), not assumed: some architectures treat layers by their number.
"""

import copy
from typing import Any, cast

from torch import Tensor, nn


class _Reached(Exception):
    """The layer's input is there; nothing further is wanted."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def layers_of(model: nn.Module) -> str | None:
    """The name of the list of layers that the model is a stack of: the longest `nn.ModuleList` outside of others, or None."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = {name: n for name, n in lists.items() if not any(name.startswith(other + ".") for other in lists)}
    return max(outermost, key=lambda name: outermost[name]) if outermost else None


def lower_part(model: nn.Module, layer: int, inputs: dict[str, Tensor]) -> Tensor:
    """The hidden states that enter `layer` [B, L, D]."""
    stack = cast(nn.ModuleList, model.get_submodule(layers_of(model) or ""))

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    # Hooked on a view, so that a call of the same model in another thread does not meet the hook.
    view = _replaced(model, f"{layers_of(model)}.{layer}", copy.copy(stack[layer]))
    here = view.get_submodule(f"{layers_of(model)}.{layer}")
    here._forward_pre_hooks, here._forward_pre_hooks_with_kwargs = (
        copy.copy(here._forward_pre_hooks),
        copy.copy(here._forward_pre_hooks_with_kwargs),
    )
    here.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        view(**inputs)
    except _Reached as reached:
        return reached.hidden
    raise ValueError(f"layer {layer} was not reached")


def upper_part(model: nn.Module, layer: int) -> nn.Module:
    """A model from `layer` up: called with `inputs_embeds`, the hidden states that enter that layer. Raises ValueError where the
    model's embeddings cannot be told apart from its layers."""
    name = layers_of(model)
    embedding = cast(Any, model).get_input_embeddings()
    path = next(n for n, module in model.named_modules() if module is embedding)
    block = path.split(".")[0]
    if name is None or name.split(".")[0] == block:
        raise ValueError("the embeddings are not apart from the layers")
    stack = cast(nn.ModuleList, model.get_submodule(name))
    return _replaced(_replaced(model, name, nn.ModuleList(list(stack)[layer:])), block, _HiddenStates())


class _HiddenStates(nn.Module):
    def forward(self, *_args: Any, inputs_embeds: Tensor, **_kwargs: Any) -> Tensor:
        return inputs_embeds


def _replaced(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """A view of `model`, sharing all of it but the modules on the way to `path`."""
    name, _, rest = path.partition(".")
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view._modules[name] = _replaced(cast(nn.Module, model._modules[name]), rest, new) if rest else new
    return view
