"""The calls into `metatrain` that the recorder makes, with the module names of commit cdc3a26.

Each version of the internal API has one such module, with the same functions. The scripts choose a module by name. Results are
tensors with flat names, so that a script can hash them without knowing their structure. A `case` is a mapping of plain data:

    delta      a delta configuration, {"kind": "lora", …}
    inner      an inner-loop configuration, {"objective": {…}, …}
    support    T support sets, each a list of (text, class)
    query      T query sets of the same form; may be missing
    seed       the seed for the split into parts and for the augmented views; 0 if missing
    steps      the number of inner steps for all tasks; from `inner` if missing
    rates      "leaf" (one rate per leaf), "step" (one per leaf and step), "parameter" (one per parameter); "leaf" if missing
    updated    shell patterns of the base parameters that the outer loop trains; none if missing
    anchor     the weight, in the query loss, of the drift from the base model's features; 0 if missing
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from metatrain.algorithms import AlgorithmSection
from metatrain.artifact import Adapter, AdapterMetadata
from metatrain.bank import Bank, pack
from metatrain.base.text import TextBase, load_text_base
from metatrain.classification import HEAD_LEAVES, Adapted, Classification, adapt_each, adapted_each
from metatrain.metagrad import MetaGradient
from metatrain.nets import Examples, NetTasks, classify, parameters, regress
from metatrain.optimizers import Optimizer
from metatrain.problem import Outer
from metatrain.taskbatch import Tokenized
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from metatrain.deltas import DeltaConfig
from metatrain.errors import DeadlineExceeded
from metatrain.inner import InnerConfig, trajectory

Named = dict[str, Tensor]
Case = Mapping[str, Any]


def load(model: str | None, attention: str) -> TextBase:
    """Load a base model in float32 on the CPU: the one in the folder `model`, or the default one if None.

    `attention` is "sdpa" or "eager".
    """
    given: dict[str, Any] = {} if model is None else {"name": model}
    return load_text_base(**given, precision="float32", attention=attention, device=torch.device("cpu"))  # type: ignore[arg-type]


def refused(inner: Mapping[str, Any]) -> str | None:
    """Return the error message for this inner-loop configuration, or None if it is valid."""
    try:
        InnerConfig.model_validate(inner)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return None


def start(base: TextBase, case: Case) -> Named:
    """Return the values with which the inner loop starts: θ, rates, scale and updated base parameters.

    θ is drawn with a fixed seed.
    """
    return dict(_outer(base, case).values())


def walk(base: TextBase, case: Case, order: str) -> Named:
    """Run the inner loop and return its state after every step.

    `order` is "first" or "second", as in meta-training, or "serving". The results are:

    - `phi.K.LEAF` [T, …]: the adapted leaves after K steps
    - `loss.K` [T]: the support loss before step K + 1
    - `head.weight` and `head.bias`: the head that predicts
    - `query.loss` and `query.accuracy` [T]: only if there is a query set
    """
    serving = order == "serving"
    tasks, outer, optimizer = _tasks(base, case, serving=serving)
    found: Named = {}
    for point in trajectory(tasks, outer, optimizer, order="second" if order == "second" else "first"):
        found |= {f"phi.{point.step}.{name}": leaf for name, leaf in point.phi.items()}
    found |= {f"loss.{step}": loss for step, loss in enumerate(point.losses)}
    if serving:
        with torch.no_grad():
            adapted = tasks.adapted(point.phi, outer, point.step, exact=False)
    else:
        adapted = tasks.adapted(point.phi, outer, point.step, exact=order == "second")
    return _detached({**found, **_answers(tasks, adapted, outer)})


def serve(base: TextBase, case: Case) -> Named:
    """Run the inner loop as a worker does: each task leaves the batch after its own number of steps.

    For task number I, the results are `I.delta.LEAF`, `I.head.weight`, `I.head.bias` and `I.loss` [steps]. If there is a query set,
    `query.loss` and `query.accuracy` [T] are added, from a second run of the loop in the way that evaluation runs it.
    """
    found: Named = {}
    for t, ended in enumerate(adapt_each(*_tasks(base, case, serving=True))):
        assert not isinstance(ended, DeadlineExceeded)
        found |= {f"{t}.delta.{name}": leaf for name, leaf in ended.delta.items()}
        found |= {f"{t}.head.weight": ended.weight, f"{t}.head.bias": ended.bias}
        found[f"{t}.loss"] = torch.tensor(ended.losses, dtype=torch.float64)
    tasks, outer, optimizer = _tasks(base, case, serving=True)
    return _detached({**found, **_answers(tasks, adapted_each(tasks, outer, optimizer), outer)})


def meta_gradient(base: TextBase, case: Case, algorithm: Mapping[str, Any], outer_step: int = 0) -> Named:
    """Return the meta-gradient at outer step number `outer_step` on these tasks.

    The results are `gradient.LEAF` for every outer leaf, `loss`, `accuracy`, `support_loss`, and `residual` if the solver reports
    one.
    """
    tasks, outer, optimizer = _tasks(base, case, serving=False)
    return _gradient(_algorithm(algorithm).meta_gradient(tasks, outer, optimizer, outer_step))


def net_gradient(
    net: nn.Module,
    data: Sequence[tuple[Tensor, Tensor]],
    algorithm: Mapping[str, Any],
    *,
    loss: str,
    optimizer: str,
    steps: int,
    rate: float,
    moved: Sequence[str] = (),
) -> Named:
    """Return the meta-gradient for all parameters of a small net. Names are as in `meta_gradient`.

    `data` has the support sets and the query sets, each as (x, y) with a task axis. `loss` is "classify" or "regress". `moved`
    lists name prefixes of the parameters that the inner loop changes; an empty list means all parameters.
    """
    support, query = (Examples(x, y) for x, y in data)
    judge = {"classify": classify, "regress": regress}[loss]
    tasks = NetTasks(net, support, query, judge, steps=steps, moved=moved)
    theta = parameters(net)
    outer = Outer(theta, {name: torch.full((1,), rate) for name in theta})
    return _gradient(_algorithm(algorithm).meta_gradient(tasks, outer, Optimizer(optimizer), 0))  # type: ignore[arg-type]


def bank(base: TextBase, adapters: Sequence[tuple[Mapping[str, Any], int]]) -> Callable[[Sequence[int], Sequence[Any]], Any]:
    """Put adapters into a bank, and return a function that predicts.

    The function takes the adapter number and the token ids of each row. It returns the probabilities of each row.

    Each adapter is given as (delta configuration, number of classes). Its weights are drawn with its number as the seed.
    """
    configs = [_delta(config) for config, _ in adapters]
    kinds = [base.attach(config) for config in dict.fromkeys(configs)]
    held = Bank(base, kinds, 2**28)
    for number, (config, (_, classes)) in enumerate(zip(configs, adapters, strict=True)):
        generator = torch.Generator().manual_seed(number)
        about = AdapterMetadata(
            initialization_digest="",
            base_weights_sha256=base.spec.weights_sha256,
            delta=config,
            scale=16.0,
            labels=tuple(map(str, range(classes))),
        )
        theta = base.attach(config).initial(generator, b_std=0.05)
        head = nn.functional.normalize(torch.randn(classes, base.hidden_size, generator=generator), dim=-1)
        held.put(str(number), pack(Adapter(about, theta, head, torch.zeros(classes)), base))
    return lambda keys, ids: held.probabilities([str(key) for key in keys], ids)


def token_ids(base: TextBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text."""
    return base.encode(texts)[0]


def bare(base: TextBase, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return the pooled features [B, D] of the bare base model, as a baseline for the bank's speed."""
    with torch.no_grad():
        return base.features(None, base.collate(ids))


def _tasks(base: TextBase, case: Case, *, serving: bool) -> tuple[Classification, Outer, Optimizer]:
    config = InnerConfig.model_validate(case["inner"])
    tokenized = Tokenized(base)
    support = tokenized.support(case["support"])
    query = tokenized.query(case["query"]) if "query" in case else None
    tasks = Classification(
        base,
        base.attach(_delta(case["delta"])),
        config,
        support,
        query,
        steps=case.get("steps"),
        seed=case.get("seed", 0),
        anchor=case.get("anchor", 0.0),
        serving=serving,
    )
    return tasks, _outer(base, case), config.update


def _outer(base: TextBase, case: Case) -> Outer:
    kind, generator = base.attach(_delta(case["delta"])), torch.Generator().manual_seed(0)
    theta = kind.initial(generator, b_std=0.1)
    kept = case.get("rates", "leaf")
    steps = 1 if kept == "leaf" else 2
    rates = {name: torch.full((steps,), 0.02) for name in theta} | {name: torch.full((steps,), 0.05) for name in HEAD_LEAVES}
    if kept == "step":
        rates = {name: rate * torch.tensor([1.0, 0.5]) for name, rate in rates.items()}
    elif kept == "parameter":
        rates |= {n: 0.02 * (0.5 + torch.rand((steps, *leaf.shape), generator=generator)) for n, leaf in theta.items()}
    updated = {name: 1.05 * leaf for name, leaf in base.parameters(case.get("updated", ())).items()}
    return Outer(theta, rates, torch.tensor(8.0), updated)


@functools.cache
def _validator(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _delta(config: Mapping[str, Any]) -> Any:
    return _validator(DeltaConfig).validate_python(dict(config))


def _algorithm(config: Mapping[str, Any]) -> Any:
    return _validator(AlgorithmSection).validate_python(dict(config))


def _answers(tasks: Classification, adapted: Adapted, outer: Outer) -> Named:
    found: Named = {"head.weight": adapted.head.weight, "head.bias": adapted.head.bias}
    if tasks.query is not None:
        found["query.loss"], found["query.accuracy"] = tasks.judged(adapted, outer)
    return found


def _gradient(found: MetaGradient) -> Named:
    named: Named = {f"gradient.{name}": leaf for name, leaf in found.gradients.items()}
    numbers = {"loss": [found.loss], "accuracy": [found.accuracy], "support_loss": list(found.support_loss)}
    numbers |= {} if found.residual is None else {"residual": [found.residual]}
    return _detached({**named, **{name: torch.tensor(own, dtype=torch.float64) for name, own in numbers.items()}})


def _detached(named: Named) -> Named:
    return {name: leaf.detach() for name, leaf in named.items()}
