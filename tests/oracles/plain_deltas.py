"""Plain reference implementations of all delta kinds, for one row and one θ (set of parameters).

They run on a model without any hooks from `metatrain`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from metatrain.deltas import BottleneckConfig, DeltaKind, IA3Config, LoRAConfig, PrefixConfig


def last_hidden_state(model: nn.Module, kind: DeltaKind, theta: Mapping[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """Apply a delta with the parameters `theta`. Return the last hidden states of one row.

    Their shape is [1, L, D], or [1, D, H, W] for a convolutional model. The changes to `model` are not undone.
    """
    apply = {"lora": _merge_lora, "ia3": _merge_ia3, "bottleneck": _hook_bottlenecks, "head": lambda *_: None}
    if kind.config.kind == "prompt":
        return _prompted(model, theta["prompt_embeddings"], inputs)
    if kind.config.kind == "prefix":
        return _prefixed(model, kind.config, theta, inputs)
    cast(Any, apply[kind.config.kind])(model, kind.config, theta)
    return cast(Tensor, model(**inputs).last_hidden_state)


def _oriented(module: nn.Module, matrix: Tensor) -> Tensor:
    """Convert a matrix [D_out, D_in] to the layout of the module's weight. Conv1D stores the transpose."""
    weight = cast(Tensor, module.weight)
    return matrix.T if type(module).__name__ == "Conv1D" else matrix.view_as(weight)


def _merge_lora(model: nn.Module, config: LoRAConfig, theta: Mapping[str, Tensor]) -> None:
    for name in {leaf.rsplit(".lora_", 1)[0] for leaf in theta}:
        module, a, b = model.get_submodule(name), theta[f"{name}.lora_A.weight"], theta[f"{name}.lora_B.weight"]
        cast(Tensor, module.weight).add_(_oriented(module, config.alpha / config.rank * (b @ a)))


def _merge_ia3(model: nn.Module, _config: IA3Config, theta: Mapping[str, Tensor]) -> None:
    for leaf, factors in theta.items():
        module = model.get_submodule(leaf.removesuffix(".ia3_l"))
        weight = cast(Tensor, module.weight)
        inputs = factors.shape[0] == 1
        matrix = weight.T if type(module).__name__ == "Conv1D" else weight.flatten(1)
        weight.copy_(_oriented(module, matrix * factors))
        if not inputs and module.bias is not None:
            cast(Tensor, module.bias).mul_(factors[:, 0])


def _hook_bottlenecks(model: nn.Module, _config: BottleneckConfig, theta: Mapping[str, Tensor]) -> None:
    for name in {leaf.rsplit(".", 2)[0] for leaf in theta}:
        module = model.get_submodule(name)
        module.register_forward_hook(
            _bottleneck(*(theta[f"{name}.{part}"] for part in ("down.weight", "down.bias", "up.weight", "up.bias")))
        )


def _bottleneck(v: Tensor, c: Tensor, u: Tensor, b: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(_module: nn.Module, _inputs: Any, y: Tensor) -> Tensor:
        last = y.permute(0, 2, 3, 1) if y.dim() == 4 else y
        last = last + nn.functional.linear(nn.functional.gelu(nn.functional.linear(last, v, c)), u, b)
        return last.permute(0, 3, 1, 2) if y.dim() == 4 else last

    return add


def _prompted(model: nn.Module, prompt: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    words = cast(Any, model).get_input_embeddings()(inputs["input_ids"])
    states = model(inputs_embeds=torch.cat([prompt.unsqueeze(0), words], dim=1)).last_hidden_state
    return cast(Tensor, states)[:, len(prompt) :]


def _prefixed(model: nn.Module, config: PrefixConfig, theta: Mapping[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """Compute the last hidden states with a plain attention function that adds the prefix.

    The attention mask applies only to the row's own tokens. Every position attends to the whole prefix.
    """
    name_of = {module: name for name, module in model.named_modules()}
    model_inputs: dict[str, Tensor] = dict(inputs)
    if any(name.endswith(("position_embeddings", "wpe")) for name in name_of.values()):
        model_inputs["position_ids"] = config.tokens + torch.arange(inputs["input_ids"].shape[1]).unsqueeze(0)

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> tuple[Tensor, None]:
        heads, shared, words = q.shape[1], k.shape[1], k.shape[2]
        site = name_of[module]
        if f"{site}.prefix_key" in theta:
            k, v = (
                torch.cat([theta[f"{site}.prefix_{n}"].view(1, -1, shared, q.shape[3]).transpose(1, 2), states], dim=2)
                for n, states in (("key", k), ("value", v))
            )
        scores = q @ k.repeat_interleave(heads // shared, dim=1).transpose(2, 3)
        scores = scores * (q.shape[3] ** -0.5 if options.get("scaling") is None else options["scaling"])
        if mask is not None:
            scores[..., -words:] += mask
        return (scores.softmax(-1) @ v.repeat_interleave(heads // shared, dim=1)).transpose(1, 2), None

    with _attention(model, attend):
        return cast(Tensor, model(**model_inputs).last_hidden_state)


@contextmanager
def _attention(model: nn.Module, attend: Callable[..., Any]) -> Iterator[None]:
    AttentionInterface.register("plain", attend)
    AttentionMaskInterface.register("plain", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    original = cast(Any, model).config._attn_implementation
    cast(Any, model).set_attn_implementation("plain")
    yield
    cast(Any, model).set_attn_implementation(original)
