"""A base model split below one of its layers, so that the lower layers need not run again.

A delta that acts only on the upper layers does not change the output of the lower ones. To run the lower part, the whole model is
called and stopped at the input of the first upper layer. The upper part is a view of the model that shares its modules, omits the
lower layers and takes hidden states in place of embeddings. Some architectures treat a layer according to its number, which changes
when the lower layers are omitted. Therefore `Backbone.below` compares the two parts with the whole model before it uses them.
"""

import copy
from typing import Any, cast

from torch import Tensor, nn


class _LayerReached(Exception):
    """Stops a forward pass at the input of a layer, and carries that input."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def layers_of(model: nn.Module) -> str | None:
    """Return the name of the model's stack of layers, or None if the model has no `nn.ModuleList`.

    The stack is the longest `nn.ModuleList` that is not inside another one.
    """
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = {name: n for name, n in lists.items() if not any(name.startswith(other + ".") for other in lists)}
    return max(outermost, key=lambda name: outermost[name]) if outermost else None


def lower_part(model: nn.Module, layer: int, inputs: dict[str, Tensor]) -> Tensor:
    """Run the model up to `layer`, and return the hidden states that enter that layer, [B, L, D].

    `inputs`: the arguments of the model. Raises ValueError if the model does not call the layer.
    """
    stack = cast(nn.ModuleList, model.get_submodule(layers_of(model) or ""))

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _LayerReached(args[0] if args else kwargs["hidden_states"])

    # Register the hook on a view, so that it does not stop calls of the same model in other threads.
    view = _with_module(model, f"{layers_of(model)}.{layer}", copy.copy(stack[layer]))
    layer_view = view.get_submodule(f"{layers_of(model)}.{layer}")
    layer_view._forward_pre_hooks, layer_view._forward_pre_hooks_with_kwargs = (
        copy.copy(layer_view._forward_pre_hooks),
        copy.copy(layer_view._forward_pre_hooks_with_kwargs),
    )
    layer_view.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        view(**inputs)
    except _LayerReached as reached:
        return reached.hidden
    raise ValueError(f"expected a forward pass through layer {layer}, it was not called")


def upper_part(model: nn.Module, layer: int) -> nn.Module:
    """Return a view of the model that consists of `layer` and all that follows it.

    Call the view with the hidden states that enter `layer` as `inputs_embeds`. Raises ValueError if the model's embeddings and its
    layers are in the same child module.
    """
    name = layers_of(model)
    embedding = cast(Any, model).get_input_embeddings()
    path = next(n for n, module in model.named_modules() if module is embedding)
    embedding_block = path.split(".")[0]
    if name is None or name.split(".")[0] == embedding_block:
        raise ValueError("expected embeddings and layers in different child modules of the model")
    stack = cast(nn.ModuleList, model.get_submodule(name))
    upper = _with_module(model, name, nn.ModuleList(list(stack)[layer:]))
    return _with_module(upper, embedding_block, _HiddenStates())


class _HiddenStates(nn.Module):
    """A replacement for the embeddings of an upper part: it returns its input, the hidden states."""

    def forward(self, *_args: Any, inputs_embeds: Tensor, **_kwargs: Any) -> Tensor:
        return inputs_embeds


def _with_module(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Return a view of `model` in which the module at the dotted `path` is `new`.

    The view shares with `model` every module that is not on the path.
    """
    name, _, rest = path.partition(".")
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view._modules[name] = _with_module(cast(nn.Module, model._modules[name]), rest, new) if rest else new
    return view
