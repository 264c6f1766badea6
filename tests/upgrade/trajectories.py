"""Record inner loops and meta-gradients exactly, with the code that is on the import path.

    python trajectories.py API MODELS OUT

API selects the module `api_API.py` of this folder, which calls the product (`cdc3a26` or `current`). MODELS is a folder of tiny
base models (`bert`, `roberta`, …) that every commit can load. OUT is the JSON file to write: {"code", "cases": {case: {name:
tensor}}}. A tensor of up to eight numbers is recorded as hexadecimal floats, a larger one as the sha256 of its bytes and its norm.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Case = dict[str, Any]
Pairs = list[tuple[str, int]]
WORDS = """
i want to please my card account money lost send close open order pizza book table flight cancel the a today now help refund
reset password login sign in out play music song weather rain lights on off turn call taxi train ticket late early
"""
LORA = {"kind": "lora", "rank": 2, "alpha": 4, "targets": ("query", "intermediate.dense")}
MIXTURES: dict[str, dict[str, float]] = {
    "ce": {"cross_entropy": 1.0},
    "loo": {"leave_one_out": 1.0},
    "sc": {"supervised_contrastive": 1.0},
    "ce+sc": {"cross_entropy": 0.3, "supervised_contrastive": 1.7},
    "ce+loo+sc": {"cross_entropy": 0.5, "leave_one_out": 1.25, "supervised_contrastive": 0.75},
}
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"head": "linear"},
    "prototypes": {"head": "prototypes"},
    "prototypes+2": {"head": "prototypes", "head_steps": 2},
}
PARTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "parts": {"rows_per_step": 4},
    "in_parts": {"rows_per_step": 4, "in_parts": {"objective": {"cross_entropy": 1.0, "supervised_contrastive": 0.4}, "most": 2}},
}
HARD = {"shots": 2, "below": 0.6, "steps": 7}
KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "bottleneck", "rank": 3},
    {"kind": "ia3"},
    {"kind": "prefix", "tokens": 3},
    {"kind": "prompt", "tokens": 3},
    {"kind": "head"},
    {**LORA, "layers": (1,)},
)
_SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("api")
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="record only cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    api = importlib.import_module(f"api_{options.api}")
    began, cases = time.perf_counter(), dict[str, dict[str, Any]]()
    for name, record in every_case(api, options.models):
        if options.only in name:
            assert name not in cases, name
            cases[name] = {key: serialize(tensor) for key, tensor in record().items()}
    code = str(Path(sys.modules["metatrain"].__path__[0]).parent)
    options.out.write_text(json.dumps({"code": code, "cases": cases}))
    print(f"{len(cases)} cases in {time.perf_counter() - began:.0f} s with the code in {code}")


def serialize(tensor: Tensor) -> Any:
    """Return a tensor in a form that JSON can store and that can be compared exactly.

    A floating-point tensor of up to eight numbers becomes a list of hexadecimal floats. Any other tensor becomes its norm and the
    sha256 of its type, shape and bytes.
    """
    if tensor.numel() <= _SHOWN and tensor.is_floating_point():
        return [float(number).hex() for number in tensor.flatten().tolist()]
    header = f"{tensor.dtype} {list(tensor.shape)} "
    digest = hashlib.sha256(header.encode() + tensor.contiguous().numpy().tobytes()).hexdigest()
    return {"sha256": digest, "norm": float(tensor.double().norm()).hex()}


def every_case(api: Any, models: Path) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
    """Yield (name, function that runs the case) for each case."""
    fused, eager = (api.load(str(models / "bert"), attention) for attention in ("sdpa", "eager"))
    for name, case in product_of_all(api):
        inner = case["inner"]
        # With a query set, the same loop runs once more, so only half of the cases have one.
        served = {key: value for key, value in case.items() if key != "query" or not inner["proximal"]}
        yield f"serve | {name}", partial(api.serve, fused, served)
        # Meta-training ignores `hard_steps` and `in_parts`, so few cases with them are needed.
        if "hard_steps" not in inner and ("in_parts" not in inner or inner["objective"] == MIXTURES["ce+sc"]):
            yield f"serving | {name}", partial(api.walk, fused, case, "serving")
            yield f"first | {name}", partial(api.walk, fused, case, "first")
            yield f"second | {name}", partial(api.walk, eager, case, "second")
    for name, case in single_variations():
        yield f"start | {name}", partial(api.start, fused, case)
        yield f"serve | {name}", partial(api.serve, fused, case)
        yield f"first | {name}", partial(api.walk, fused, case, "first")
        yield f"second | {name}", partial(api.walk, eager, case, "second")
    for architecture in ("roberta", "distilbert", "modernbert"):
        base, case = api.load(str(models / architecture), "sdpa"), of_architecture(architecture)
        yield f"serve | {architecture}", partial(api.serve, base, case)
        yield f"first | {architecture}", partial(api.walk, base, case, "first")
    for name, case, algorithm, outer_step in meta_gradients():
        first = algorithm["name"] in ("reptile", "protonet") or algorithm.get("order") == "first"
        base = fused if first else eager
        yield f"gradient | {name}", partial(api.meta_gradient, base, case, algorithm, outer_step)
    yield from nets(api)
    yield "bank", partial(bank_answers, api, fused)


def draw(shots: Sequence[Sequence[int]], *, first: int = 0, apart: int = 3) -> list[Pairs]:
    """Return one support set for each entry of `shots`. An entry lists the number of examples per class.

    The texts have different lengths. Successive examples of a class begin `apart` words from each other. The smaller `apart` is,
    the more similar they are.
    """
    return [
        [
            (_text(first + 5 * t + 11 * c + apart * k, 2 + (t + c + k) % 4), c)
            for c, number in enumerate(by_class)
            for k in range(number)
        ]
        for t, by_class in enumerate(shots)
    ]


def _text(start: int, length: int) -> str:
    words = WORDS.split()
    return " ".join(words[(start + i) % len(words)] for i in range(length))


UNEQUAL = {"support": draw([(2, 2, 2), (3, 1, 4), (3, 2)]), "query": draw([(1, 1, 1), (1, 2, 1), (2, 2)], first=29)}
EQUAL = {"support": draw([(3, 3, 3)]) + draw([(3, 3, 3)], first=5, apart=0), "query": draw([(1, 1, 1), (1, 1, 2)], first=29)}
ONE_SHOT = {"support": draw([(1, 1, 1), (1, 1, 1)]), "query": draw([(1, 1, 1), (1, 1, 2)], first=29)}


def product_of_all(api: Any) -> Iterator[tuple[str, Case]]:
    """Yield the combinations of options that the product accepts, apart from a few with sgd.

    If the optimizer is sgd, `hard_steps` is not combined with a proximal term or with `rows_per_step` alone. The support sets of a
    case have different numbers of shots and classes, unless they are split into parts.
    """
    choices = itertools.product(MIXTURES, HEADS, ("all", "head"), PARTS, (0.0, 0.7), (False, True), ("adam", "sgd"))
    for objective, head, moved, parts, proximal, hard, optimizer in choices:
        if hard and optimizer == "sgd" and (proximal or parts == "parts"):
            continue
        inner = {
            "objective": MIXTURES[objective],
            **HEADS[head],
            "moved": moved,
            **PARTS[parts],
            "proximal": proximal,
            "optimizer": optimizer,
            "steps": 2,
            "steps_by_shots": {1: 0, 2: 2} if "ce" not in objective else {},
            **({"hard_steps": HARD} if hard else {}),
        }
        if api.refused(inner) is None:
            tasks = UNEQUAL if parts == "whole" else EQUAL
            difficulty = "hard" if hard else "plain"
            name = f"{objective} | {head} | moved {moved} | {parts} | proximal {proximal} | {difficulty} | {optimizer}"
            yield name, {"delta": LORA, "inner": inner, **tasks}


def single_variations() -> Iterator[tuple[str, Case]]:
    """Yield cases with variations that are not combined with each other."""
    linear: dict[str, Any] = {"objective": MIXTURES["ce+sc"], "steps": 3}
    refined: dict[str, Any] = {"objective": MIXTURES["sc"], "head": "prototypes", "head_steps": 2, "steps": 3}
    refined["steps_by_shots"] = {1: 0, 2: 3}
    for kind in KINDS:
        for loop, inner in (("linear", linear), ("prototypes", refined)):
            if kind["kind"] != "head" or loop == "linear":
                layers = " of layer 1" if "layers" in kind else ""
                yield f"{kind['kind']}{layers} | {loop}", {"delta": kind, "inner": inner, **UNEQUAL}
    for loop, inner in (("linear", linear), ("prototypes", refined)):
        yield f"momentum | {loop}", {"delta": LORA, "inner": {**inner, "optimizer": "momentum"}, **UNEQUAL}
        yield (
            f"momentum in parts | {loop}",
            {"delta": LORA, "inner": {**inner, "optimizer": "momentum", "rows_per_step": 4}, **EQUAL},
        )
        for rates in ("step", "parameter"):
            yield f"rates by {rates} | {loop}", {"delta": LORA, "inner": inner, "rates": rates, **UNEQUAL}
        yield f"updated base | {loop}", {"delta": LORA, "inner": inner, "updated": ("encoder.layer.1.output.*",), **UNEQUAL}
        below = {"updated": ("encoder.layer.0.output.*",), **UNEQUAL}
        yield f"updated below the delta | {loop}", {"delta": {**LORA, "layers": (1,)}, "inner": inner, **below}
        yield f"anchor | {loop}", {"delta": LORA, "inner": inner, "anchor": 0.5, **UNEQUAL}
        yield f"four steps | {loop}", {"delta": LORA, "inner": inner, "steps": 4, **UNEQUAL}
        yield f"no steps | {loop}", {"delta": LORA, "inner": inner, "steps": 0, **UNEQUAL}
        other = {**inner, "beta1": 0.7, "beta2": 0.9, "epsilon": 1e-3}
        yield f"other moments | {loop}", {"delta": LORA, "inner": other, **UNEQUAL}
        for seed in (1, 2):
            yield f"parts, seed {seed} | {loop}", {"delta": LORA, "inner": {**inner, "rows_per_step": 4}, "seed": seed, **EQUAL}
        views: tuple[tuple[str, float], ...] = (("token_dropout", 0.4), ("span_mask", 0.4), ("embedding_noise", 5.0))
        for view, strength in views:
            augmentation = {"kind": view, "strength": strength, "views": 3}
            augmented = {**inner, "augmentation": augmentation, "steps_by_shots": {}}
            yield f"{view} | {loop}", {"delta": LORA, "inner": augmented, "seed": 3, **ONE_SHOT}
            in_parts = {**augmented, "rows_per_step": 4, "augmentation": {**augmentation, "up_to_shots": 3}}
            yield f"{view} in parts | {loop}", {"delta": LORA, "inner": in_parts, "seed": 3, **EQUAL}


def of_architecture(name: str) -> Case:
    targets = {
        "roberta": ("query", "value"),
        "distilbert": ("q_lin", "v_lin"),
        "modernbert": ("Wqkv",),
    }[name]
    inner = {"objective": MIXTURES["ce+sc"], "steps": 3}
    return {"delta": {"kind": "lora", "rank": 2, "alpha": 4, "targets": targets}, "inner": inner, **UNEQUAL}


def meta_gradients() -> Iterator[tuple[str, Case, dict[str, Any], int]]:
    """Yield (name, case, algorithm, outer step) for each meta-gradient."""
    modes: dict[str, dict[str, Any]] = {
        "unrolled": {"mode": "unrolled"},
        "checkpointed": {"mode": "checkpointed", "segment": 2},
        "adjoint, reverse": {"mode": "adjoint", "product": "reverse"},
        "adjoint, forward": {"mode": "adjoint", "product": "forward"},
        "adjoint, central": {"mode": "adjoint", "product": "central"},
        "auto that unrolls": {"mode": "auto"},
        "auto that does not": {"mode": "auto", "memory_mb": 1},
    }
    loops: dict[str, dict[str, Any]] = {
        "linear": {"objective": MIXTURES["ce"], "steps": 3},
        "mixture, sgd": {"objective": MIXTURES["ce+loo+sc"], "steps": 3, "optimizer": "sgd"},
        "prototypes": {
            "objective": MIXTURES["sc"],
            "head": "prototypes",
            "head_steps": 2,
            "steps": 3,
            "steps_by_shots": {1: 0, 2: 3},
        },
        "proximal": {"objective": MIXTURES["ce+sc"], "steps": 3, "proximal": 0.7},
    }
    for loop, inner in loops.items():
        case: Case = {"delta": LORA, "inner": inner, "rates": "step", **UNEQUAL}
        yield f"FOMAML | {loop}", case, {"name": "maml", "order": "first"}, 0
        yield f"FOMAML, multi-step | {loop}", case, {"name": "maml", "order": "first", "multi_step": 4}, 1
        for mode, gradient in modes.items():
            yield f"MAML, {mode} | {loop}", case, {"name": "maml", "order": "second", "gradient": gradient}, 0
        yield f"MAML, multi-step | {loop}", case, {"name": "maml", "order": "second", "multi_step": 4}, 1
        adjoint = {"name": "maml", "order": "second", "multi_step": 4, "gradient": modes["adjoint, reverse"]}
        yield f"MAML, multi-step, adjoint | {loop}", case, adjoint, 1
        yield f"MAML, annealed | {loop}", case, {"name": "maml", "order": "second", "annealed": 2}, 1
        for mode in ("unrolled", "adjoint, reverse"):
            yield f"Meta-SGD, {mode} | {loop}", {**case, "rates": "parameter"}, {"name": "metasgd", "gradient": modes[mode]}, 0
        yield f"Reptile | {loop}", case, {"name": "reptile"}, 0
        yield f"ProtoNet | {loop}", case, {"name": "protonet"}, 0
        for solver in ("cg", "neumann"):
            gradient = {"solver": solver, "damping": 20.0} | ({"neumann_rate": 0.02} if solver == "neumann" else {})
            algorithm = {"name": "imaml", "strength": 0.7, "gradient": gradient}
            yield f"iMAML, {solver} | {loop}", case, algorithm, 0
    head: Case = {"delta": LORA, "inner": {**loops["linear"], "moved": "head"}, **UNEQUAL}
    for mode, gradient in modes.items():
        yield f"ANIL, {mode}", head, {"name": "anil", "gradient": gradient}, 0
    case = {"delta": LORA, "inner": loops["linear"], **UNEQUAL}
    for extra in ({"updated": ("encoder.layer.1.output.*",)}, {"anchor": 0.5}):
        for order in ("first", "second"):
            yield f"MAML, {order} order | {next(iter(extra))}", {**case, **extra}, {"name": "maml", "order": order}, 0
    yield (
        "MAML in parts",
        {**case, **EQUAL, "inner": {**loops["linear"], "rows_per_step": 4}},
        {"name": "maml", "order": "second"},
        0,
    )


def nets(api: Any) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
    """Yield (name, function) for each meta-gradient of two small nets, for all their parameters."""
    generator = torch.Generator().manual_seed(4)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def net(*sizes: int) -> nn.Module:
        layers: list[nn.Module] = []
        for left, right in itertools.pairwise(sizes):
            linear = nn.Linear(left, right)
            with torch.no_grad():
                linear.weight.copy_(0.4 * numbers(right, left))
                linear.bias.copy_(0.1 * numbers(right))
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    regression = net(1, 12, 12, 1), [(numbers(3, 6, 1), numbers(3, 6, 1)), (numbers(3, 6, 1), numbers(3, 6, 1))]
    classes = torch.tensor([[0, 1, 2, 0, 1, 2]] * 3)
    classification = net(5, 12, 3), [(numbers(3, 6, 5), classes), (numbers(3, 6, 5), classes)]
    algorithms: tuple[dict[str, Any], ...] = (
        {"name": "maml", "order": "first"},
        {"name": "maml", "order": "second"},
        {"name": "maml", "order": "second", "gradient": {"mode": "adjoint"}},
        {"name": "reptile"},
    )
    for loss, (model, data) in {"regress": regression, "classify": classification}.items():
        for algorithm, optimizer in itertools.product(algorithms, ("sgd", "adam")):
            options: Mapping[str, Any] = {"loss": loss, "optimizer": optimizer, "steps": 3, "rate": 0.1}
            name = " ".join(map(str, algorithm.values()))
            yield (
                f"net | {loss} | {name} | {optimizer}",
                partial(api.net_gradient, model, data, algorithm, **options),
            )


def bank_answers(api: Any, base: Any) -> dict[str, Tensor]:
    """Return the probabilities of one batch, with adapters of different kinds, ranks and class counts."""
    kinds: list[dict[str, Any]] = [LORA, {**LORA, "rank": 1}, {"kind": "bottleneck", "rank": 3}, {"kind": "prompt", "tokens": 3}]
    answer = api.bank(base, [(kind, 2 + number) for number, kind in enumerate(kinds)])
    keys = [i % len(kinds) for i in range(24)]
    rows = answer(keys, api.token_ids(base, [_text(7 * i, 1 + i % 9) for i in range(24)]))
    return {str(i): torch.tensor(row, dtype=torch.float64) for i, row in enumerate(rows)}


if __name__ == "__main__":
    main()
