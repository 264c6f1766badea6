"""Is this architecture supported with this delta? Measured when they are loaded, never guessed."""

import copy
import warnings
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn

from metatrain.base.text import TextBase, TokenBatch
from metatrain.deltas import LoRA
from metatrain.errors import UnsupportedDelta

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
_TEXTS = (
    "short",
    "a row of middling length, with some words",
    "and the longest row of the three, which pads both of the others out",
)


def probe(base: TextBase, lora: LoRA) -> None:
    """Raises UnsupportedDelta with the reason unless, on this very model:

    a mixed batch gives each row what it gets alone and what stock PEFT gives it with that delta; every leaf of the delta moves
    the output; and, where the base model was loaded for it (attention="eager"), a second derivative exists and is finite.
    """
    _longest_row_fits(base)
    generator = torch.Generator().manual_seed(0)
    thetas = [lora.initial(generator, b_std=0.05) for _ in _TEXTS]
    ids = base.encode(_TEXTS)[0]
    batch, singles = base.collate(ids), [base.collate([row]) for row in ids]
    stacked = {n: torch.stack([t[n] for t in thetas]).to(base.device) for n in lora.shapes}
    where = f"{type(base.model).__name__} with {lora.config.kind} on {', '.join(lora.config.targets)}"
    with torch.no_grad():
        mixed = base.features(lora.fold(stacked), batch, slots=torch.arange(len(ids), device=base.device))
        alone = torch.cat(
            [
                base.features(lora.fold({n: leaf[i : i + 1] for n, leaf in stacked.items()}), single)
                for i, single in enumerate(singles)
            ]
        )
        stock = torch.cat([_peft_features(base, lora, theta, single) for theta, single in zip(thetas, singles, strict=True)])
        bare = base.features(None, batch)
    tolerance = TOLERANCE[base.dtype]
    for other, name in ((alone, "the same rows alone"), (stock, "stock PEFT")):
        gap = float((mixed - other).abs().max())
        if not gap <= tolerance:
            raise UnsupportedDelta(f"{where}: a mixed batch differs from {name} by {gap:.1e}, more than {tolerance:.0e}")
    if torch.equal(mixed, bare):
        raise UnsupportedDelta(f"{where}: the delta does not change the output")
    _every_leaf_moves(base, lora, stacked, batch, where)
    if base.attention == "eager" and base.dtype != torch.bfloat16:  # exact meta-gradients are of float32 alone
        _double_backward(base, lora, stacked, batch, where)


@torch.no_grad()
def _longest_row_fits(base: TextBase) -> None:
    longest = base.encode([_TEXTS[2] * base.spec.max_length])[0]
    try:
        fits = bool(torch.isfinite(base.features(None, base.collate(longest))).all())
    except (RuntimeError, IndexError) as error:
        raise UnsupportedDelta(
            f"{type(base.model).__name__} does not take rows of {base.spec.max_length} tokens: {error}"
        ) from error
    if not fits:
        raise UnsupportedDelta(f"{type(base.model).__name__} gives no finite features for rows of {base.spec.max_length} tokens")


def _score(base: TextBase, lora: LoRA, delta: dict[str, Tensor], batch: TokenBatch) -> Tensor:
    """Some scalar that depends on all features."""
    features = base.features(lora.fold(delta), batch, slots=torch.arange(len(_TEXTS), device=base.device))
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features.device)
    return (features * weights).sum()


def _every_leaf_moves(base: TextBase, lora: LoRA, delta: dict[str, Tensor], batch: TokenBatch, where: str) -> None:
    live = {n: t.clone().requires_grad_() for n, t in delta.items()}
    gradients = torch.autograd.grad(_score(base, lora, live, batch), list(live.values()), allow_unused=True)
    for name, g in zip(live, gradients, strict=True):
        if g is None or not torch.isfinite(g).all() or not g.flatten(1).norm(dim=1).all():
            raise UnsupportedDelta(f"{where}: leaf {name} has no effect on the output, or none that is finite")


def _double_backward(base: TextBase, lora: LoRA, delta: dict[str, Tensor], batch: TokenBatch, where: str) -> None:
    live = {n: t.clone().requires_grad_() for n, t in delta.items()}
    leaves = list(live.values())
    try:
        first = torch.autograd.grad(_score(base, lora, live, batch), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), leaves)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedDelta(f"{where}: no second derivative: {str(error).splitlines()[0]}") from error
    if not all(torch.isfinite(g).all() and g.any() for g in second):
        raise UnsupportedDelta(f"{where}: a second derivative is zero or not finite")


def _peft_features(base: TextBase, lora: LoRA, theta: dict[str, Tensor], batch: TokenBatch) -> Tensor:
    config = LoraConfig(
        r=lora.config.rank, lora_alpha=cast(Any, lora.config.alpha), target_modules=sorted(lora.sites), lora_dropout=0.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = get_peft_model(copy.deepcopy(cast(Any, base.model)), config)
    state = {f"base_model.model.{name}": leaf for name, leaf in theta.items()}
    unexpected = cast(Any, set_peft_model_state_dict(stock, state)).unexpected_keys
    if unexpected:
        raise UnsupportedDelta(f"stock PEFT does not know the leaf {unexpected[0]}")
    return TextBase(cast(nn.Module, stock.base_model.model), base.tokenizer, base.spec, attention=base.attention).features(
        None, batch
    )
