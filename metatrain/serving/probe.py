"""The load-time probe, which runs a model to check that a delta kind works with its architecture."""

import copy
import warnings
from typing import Any, cast

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from quickstudy.one_line import shown_path
from torch import Tensor

from metatrain.deltas import DeltaKind
from metatrain.deltas.peft_format import PeftFiles
from metatrain.deltas.virtual import real_token_mask
from metatrain.errors import UnsupportedDelta, first_line
from metatrain.inner.problem import stack
from metatrain.models.backbone import TOLERANCE
from metatrain.models.base import Base
from metatrain.models.batch import Batch

LONGEST = 2048
"""The largest length of a row of the probe, in tokens. The time of attention grows with its square, and often the memory too."""
_ROWS = 3  # the number of rows that `Inputs.sample` returns


def probe(base: Base, kind: DeltaKind) -> None:
    """Raise UnsupportedDelta, with the reason, if a delta kind does not work on this model.

    The checks are:

    - each row of a batch with different deltas has the same features as alone, and as in stock PEFT if PEFT has the kind;
    - each row of a batch with different numbers of virtual tokens, if the kind has them, has the same features as alone;
    - a row of the maximum length, but at most `LONGEST`, gives finite features;
    - every leaf of the delta changes the output;
    - a second derivative exists and is finite, if the base model was loaded for it (attention="eager", not bfloat16).

    Any other exception in these checks is also raised as UnsupportedDelta. If only packed rows fail a check, the reason is logged,
    and the base model runs on padded rows from then on.
    """
    try:
        _check(base, kind)
    except UnsupportedDelta as problem:
        if not (kind.per_token and base.backbone.packs):
            raise
        with base.backbone.padded_rows(str(problem)):
            _check(base, kind)


def _check(base: Base, kind: DeltaKind) -> None:
    where = _place(base, kind)
    if targets := getattr(kind.config, "targets", ()):
        where += f" on {', '.join(targets)}"
    try:
        _check_longest_row(base, kind)
        _check_sample(base, kind, where)
    except UnsupportedDelta:
        raise
    except Exception as error:  # every architecture can fail here in its own way
        raise UnsupportedDelta(f"{where}: {first_line(error)}") from error


def _place(base: Base, kind: DeltaKind) -> str:
    return f"base.model: {shown_path(base.spec.model)}: {type(base.model).__name__} with {kind.config.kind}"


def _check_sample(base: Base, kind: DeltaKind, where: str) -> None:
    generator = torch.Generator().manual_seed(0)
    thetas = [kind.initial(generator, b_std=0.05) for _ in range(_ROWS)]
    rows = base.inputs.sample()
    batch, singles = base.collate(rows, per_token=kind.per_token), [base.inputs.collate([row]) for row in rows]
    stacked = {n: torch.stack([t[n] for t in thetas]).to(base.device) for n in kind.shapes}
    with torch.no_grad():
        mixed = base.features(kind.fold(stacked), batch, slots=range(len(rows)))
        alone = torch.cat(
            [
                base.features(kind.fold({n: leaf[i : i + 1] for n, leaf in stacked.items()}), single)
                for i, single in enumerate(singles)
            ]
        )
        bare = base.features(None, batch)
        references = {"the same rows alone": alone}
        if (files := kind.peft) is not None:
            pairs = zip(thetas, singles, strict=True)
            references["stock PEFT"] = torch.cat([_peft_features(base, files, theta, single) for theta, single in pairs])
    for name, reference in references.items():
        _check_equal(base, mixed, reference, f"{where}: a mixed batch differs from {name}")
    if not kind.shapes:
        return
    if torch.equal(mixed, bare):
        raise UnsupportedDelta(f"{where}: the delta does not change the output")
    if kind.counts:
        _check_unequal_counts(base, kind, stacked, where)
    _check_every_leaf_has_effect(base, kind, stacked, batch, where)
    if base.attention == "eager" and base.dtype != torch.bfloat16:  # exact meta-gradients need float32
        _check_second_derivative(base, kind, stacked, batch, where)


def _check_equal(base: Base, found: Tensor, expected: Tensor, problem: str) -> None:
    gap, tolerance = float((found - expected).abs().max()), TOLERANCE[base.dtype]
    if not gap <= tolerance:
        raise UnsupportedDelta(f"{problem} by {gap:.1e}, more than {tolerance:.0e}")


@torch.no_grad()
def _check_unequal_counts(base: Base, kind: DeltaKind, delta: dict[str, Tensor], where: str) -> None:
    """Check that rows with all, half and none of the virtual tokens do not affect each other in a batch.

    Each row must have the same features as alone. Rows of one batch have different numbers of virtual tokens if their adapters have
    deltas of different kinds or with different configurations.
    """
    rows, (full, *_) = base.inputs.sample(), set(kind.counts.values())
    numbers = [full, full // 2, 0]
    alone = []
    for i, (row, number) in enumerate(zip(rows, numbers, strict=True)):
        row_delta = {name: leaf[i : i + 1, full - number :] for name, leaf in kind.fold(delta).items()} if number else None
        alone.append(base.features(row_delta, base.inputs.collate([row])))
    counts = torch.tensor(numbers, device=base.device)
    padded = {name: leaf * real_token_mask(counts, full).unsqueeze(-1) for name, leaf in kind.fold(delta).items()}
    padded |= dict.fromkeys(kind.counts, counts.to(base.dtype))
    mixed = base.features(padded, base.inputs.collate(rows), slots=range(len(rows)))
    _check_equal(base, mixed, torch.cat(alone), f"{where}: a batch of unequal numbers of tokens differs from the same rows alone")


@torch.no_grad()
def _check_longest_row(base: Base, kind: DeltaKind) -> None:
    """Check that a long row gives finite features.

    Virtual tokens need positions in addition to those of the row, and the model may not have enough positions.
    """
    row = base.inputs.longest(LONGEST)
    longest = base.collate([row], per_token=kind.per_token)
    theta = kind.fold(stack(kind.initial(torch.Generator().manual_seed(0)), 1))
    where = _place(base, kind)
    try:
        fits = bool(torch.isfinite(base.features({n: leaf.to(base.device) for n, leaf in theta.items()}, longest)).all())
    except (RuntimeError, IndexError) as error:
        raise UnsupportedDelta(
            f"{where} does not take rows of {len(row)} tokens; lower base.max_length if you can: {first_line(error)}"
        ) from error
    if not fits:
        raise UnsupportedDelta(f"{where} gives no finite features for rows of {len(row)} tokens")


def _score(base: Base, kind: DeltaKind, delta: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return a scalar that depends on every feature of the batch, so that it can be differentiated."""
    features = base.features(kind.fold(delta), batch, slots=range(_ROWS))
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features.device)
    return (features * weights).sum()


def _check_every_leaf_has_effect(base: Base, kind: DeltaKind, delta: dict[str, Tensor], batch: Batch, where: str) -> None:
    live = {n: t.clone().requires_grad_() for n, t in delta.items()}
    gradients = torch.autograd.grad(_score(base, kind, live, batch), list(live.values()), allow_unused=True)
    for name, g in zip(live, gradients, strict=True):
        if g is None or not torch.isfinite(g).all() or not g.flatten(1).norm(dim=1).all():
            raise UnsupportedDelta(f"{where}: leaf {name} has no effect on the output, or a gradient that is not finite")


def _check_second_derivative(base: Base, kind: DeltaKind, delta: dict[str, Tensor], batch: Batch, where: str) -> None:
    live = {n: t.clone().requires_grad_() for n, t in delta.items()}
    leaves = list(live.values())
    try:
        first = torch.autograd.grad(_score(base, kind, live, batch), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), leaves)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedDelta(f"{where}: no second derivative: {first_line(error)}") from error
    if not all(torch.isfinite(g).all() and g.any() for g in second):
        raise UnsupportedDelta(f"{where}: a second derivative is zero or not finite")


def _peft_features(base: Base, files: PeftFiles, theta: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return the features [B, D] that stock PEFT computes with θ. The batch must have only one bucket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = cast(Any, PeftConfig).from_peft_type(**{**files.config(""), "inference_mode": False})
        with base.backbone.exclusive:
            copied = copy.deepcopy(cast(Any, base.model))
        stock = get_peft_model(copied, config).eval()
    set_peft_model_state_dict(stock, files.to_peft(theta))
    state = get_peft_model_state_dict(stock, save_embedding_layers=False)
    if state.keys() != files.shapes.keys():
        raise UnsupportedDelta(f"stock PEFT has different leaves, for example {min(state.keys() ^ files.shapes.keys())}")
    (part,) = batch.parts
    arguments = part.arguments(0)
    hidden = stock(**arguments).last_hidden_state
    states = hidden.to(torch.promote_types(hidden.dtype, torch.float32))[:, -arguments["attention_mask"].shape[1] :]
    return part.pooled(states, batch.pooler)
