"""`make bench-adapt`: compare the time from POST to ready with the bare inner loop, PEFT and SetFit.

All systems get the same support sets: 5-way 1-, 5- and 10-shot from the shipped task set, and with `--data` all 77 classes of
BANKING77 with 10 examples each. The default initialization was trained on BANKING77, so its accuracy there means nothing.

- "At rest" sends one request after another. "At once" runs 16 clients, each of which sends its next support set as soon as it has
  an adapter. No support set is sent twice, so every request is a new job.
- The bare inner loop is `worker.runtime` with the same number of threads, measured before the service starts. The service takes
  longer by the time for HTTP, record, queue and store.
- PEFT and SetFit (the peers) run without the service, and the time to load them is excluded. PEFT trains LoRA (r=8 on query and
  value) and a linear head that starts from prototypes, with ten steps of Adam at 3e-3 over the whole support set. It gets only one
  support set of 77 classes, which takes minutes. SetFit runs with its defaults on the first `--setfit` support sets, which also
  takes minutes.
- The bare inner loop and the peers run in a separate process for each case.

The whole benchmark takes half an hour.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from quickstudy import Client
from tqdm import tqdm

from benchmarks.banking import draw
from benchmarks.limits import NO_LIMITS
from benchmarks.record import Row, write
from benchmarks.systems import setfit
from metatrain.models.inputs import TextInputs
from metatrain.models.loading import load_base
from metatrain.tasks.episodes import EpisodeSampler, EpisodeShape
from metatrain.tasks.table import STARTER, read_table
from service.running.demo import served
from worker.ledger.messages import JobRecipe
from worker.runtime import Runtime, load_runtime
from worker.settings import WorkerSettings, read_settings

CLIENTS = 16
QUERIES = 4
BARE, PEFT, SETFIT = "bare inner loop", "PEFT, 10 steps of Adam", "SetFit"
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """One case of the benchmark, such as 5-way 1-shot, with its tasks as (support, query) pairs.

    `warm`: the number of tasks at the beginning that only warm up. `long`: True if a peer takes minutes for each task.
    """

    name: str
    tasks: list[tuple[Pairs, Pairs]]
    warm: int
    long: bool = False

    def at_rest(self, requests: int) -> list[tuple[Pairs, Pairs]]:
        """Return the tasks to send one after another, including those that warm up."""
        return self.tasks[: self.warm + (max(3, requests // 10) if self.long else requests)]

    def of(self, system: str, requests: int, setfit: int) -> tuple[list[tuple[Pairs, Pairs]], int]:
        """Return the tasks for a system that runs without the service, and how many of them only warm up.

        `requests`: the number of 5-way tasks without warm-up. `setfit`: the number of 5-way tasks for SetFit.
        """
        if system == SETFIT:
            return ([] if self.long else self.tasks[:setfit]), 0
        if system == PEFT and self.long:
            return self.tasks[self.warm : self.warm + 1], 0
        return self.at_rest(requests), self.warm


def cases(data: Path | None, requests: int) -> list[Case]:
    """Draw all cases, each with enough tasks for both ways of sending them.

    `requests`: the number of requests that are sent one after another ("at rest"). The 77-way case has a tenth as many, but at
    least three. The 16 concurrent clients ("at once") get additional tasks. `data`: the folder with BANKING77; None skips the
    77-way case.
    """
    drawn_cases = []
    for shots in (1, 5, 10):
        sampler = EpisodeSampler([read_table(STARTER)], seed=99 + shots)
        drawn = [sampler.episode(i, EpisodeShape(5, shots, QUERIES)) for i in range(3 + requests + 4 * CLIENTS)]
        named = [tuple([(text, e.labels[c]) for text, c in part] for part in (e.support, e.query)) for e in drawn]
        drawn_cases.append(Case(f"5-way {shots}-shot", named, 3))  # type: ignore[arg-type]
    if data is not None:
        support, query = draw(data, 10)
        rng = np.random.default_rng(1)
        asked = [query[i] for i in rng.permutation(len(query))[:1000]]
        # Leave out a different example each time, so that the support sets differ but have the same size.
        tasks = [(support[:i] + support[i + 1 :], asked) for i in range(1 + max(3, requests // 10) + CLIENTS)]
        drawn_cases.append(Case("77-way 10-shot", tasks, 1, long=True))
    return drawn_cases


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), help="Folder with BANKING77; without it the 77-way case is skipped."
)
@click.option("--requests", default=30, show_default=True, help="Requests at rest for each 5-way case.")
@click.option("--setfit", "setfit_tasks", default=2, show_default=True, help="Support sets of each 5-way case for SetFit.")
@click.option("--apart", nargs=2, type=(str, int), hidden=True)
def main(data: Path | None, requests: int, setfit_tasks: int, apart: tuple[str, int] | None) -> None:
    if apart is not None:
        case, system = next(c for c in cases(data, requests) if c.name == apart[0]), SYSTEMS[apart[1]]
        tasks, warm = case.of(system, requests, setfit_tasks)
        print(json.dumps({BARE: _bare, PEFT: _peft, SETFIT: _setfit}[system](tasks)[warm:]))
        return
    rows: list[Row] = []
    without_service: dict[str, dict[str, list[list[float]]]] = {}
    all_cases = cases(data, requests)
    for case in all_cases:
        for number, system in enumerate(SYSTEMS):
            if count := len(case.of(system, requests, setfit_tasks)[0]):
                print(f"{case.name}, {system}: {count} support sets", file=sys.stderr, flush=True)
                without_service.setdefault(case.name, {})[system] = _run_in_own_process(data, requests, setfit_tasks, case, number)
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), {**NO_LIMITS, "LOG_LEVEL": "WARNING"}) as url:
        for case in all_cases:
            ready = _one_by_one(url, case, case.at_rest(requests))[case.warm :]
            rows += _rows(case, ready, without_service[case.name], _at_once(url, case))
    print(f"\nwrote {write('adapt', rows, requests=requests, setfit=setfit_tasks)}")


def _run_in_own_process(data: Path | None, requests: int, setfit_tasks: int, case: Case, system: int) -> list[list[float]]:
    """Measure a system on a case in a separate process, and return [milliseconds, accuracy] of each task.

    `system`: the index in `SYSTEMS`.
    """
    command = [sys.executable, "-m", "benchmarks.adapt", "--requests", str(requests), "--setfit", str(setfit_tasks)]
    command += ["--data", str(data)] if data is not None else []
    command += ["--apart", case.name, str(system)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{SYSTEMS[system]}, {case.name}:\n{done.stderr[-2000:]}")
    measured: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _recipe(support: Pairs, runtime: Runtime) -> JobRecipe:
    (resident,) = runtime.residents
    base, init = resident.base, resident.initializations["default"]
    size = len(support), len({label for _, label in support})
    return JobRecipe(
        initialization=init.name,
        initialization_digest=init.digest,
        support=tuple(sorted(support, key=lambda pair: pair[::-1])),
        steps=None if init.inner.asks(*size) else init.inner.steps_for(*size),
        seed=0,
        precision=base.precision,
    )


def _bare(tasks: list[tuple[Pairs, Pairs]]) -> list[list[float]]:
    runtime = load_runtime(read_settings(WorkerSettings), lambda digest: None)

    def run(support: Pairs, _query: Pairs) -> float:
        runtime.adapt(_recipe(support, runtime))
        return float("nan")

    return _timed(run, tasks)


def _peft(tasks: list[tuple[Pairs, Pairs]]) -> list[list[float]]:
    """Measure PEFT and return [milliseconds, accuracy] of each task.

    PEFT is used as in its documentation: a wrapped model, and one optimizer over the trainable parameters.
    """
    from peft import LoraConfig, get_peft_model

    base = load_base()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(base.model, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def features(texts: Sequence[str]) -> torch.Tensor:
        rows = cast(TextInputs, base.inputs).tokenizer(
            list(texts), padding=True, truncation=True, max_length=base.spec.max_length, return_tensors="pt"
        )
        mask = rows["attention_mask"].unsqueeze(-1)
        hidden = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).last_hidden_state.float()
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def run(support: Pairs, query: Pairs) -> Callable[[], float]:
        labels = sorted({label for _, label in support})
        targets = torch.tensor([labels.index(label) for _, label in support])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name])
            first = features([text for text, _ in support])
            prototypes = torch.stack([first[targets == c].mean(0) for c in range(len(labels))])
        head = torch.nn.Linear(first.shape[1], len(labels))
        head.weight.data, head.bias.data = 16 * torch.nn.functional.normalize(prototypes, dim=-1), torch.zeros(len(labels))
        optimizer = torch.optim.Adam([*(p for p in model.parameters() if p.requires_grad), *head.parameters()], lr=3e-3)
        for _ in range(10):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(features([text for text, _ in support])), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        @torch.no_grad()
        def judge() -> float:
            answers = torch.cat([head(features([t for t, _ in query[i : i + 200]])).argmax(-1) for i in range(0, len(query), 200)])
            return float(np.mean([labels[c] == label for c, (_, label) in zip(answers.tolist(), query, strict=True)]))

        return judge

    return _timed(run, tasks)


def _setfit(tasks: list[tuple[Pairs, Pairs]]) -> list[list[float]]:
    measured = []
    for support, query in tasks:
        labels = sorted({label for _, label in support})
        answer = setfit([(text, labels.index(label)) for text, label in support], [text for text, _ in query])
        right = [labels[c] == label for c, (_, label) in zip(answer.predicted, query, strict=True)]
        measured.append([1e3 * answer.seconds, float(np.mean(right))])
    return measured


def _timed(run: Callable[[Pairs, Pairs], float | Callable[[], float]], tasks: list[tuple[Pairs, Pairs]]) -> list[list[float]]:
    """Call `run(support, query)` for each task, and return [milliseconds, accuracy] of each.

    `run` returns the accuracy, or a function that computes it, which is called after the clock has stopped.
    """
    measured = []
    for support, query in tasks:
        began = time.perf_counter()
        judge = run(support, query)
        took = 1e3 * (time.perf_counter() - began)
        measured.append([took, judge() if callable(judge) else judge])
    return measured


SYSTEMS = (BARE, PEFT, SETFIT)


def _one_by_one(url: str, case: Case, tasks: list[tuple[Pairs, Pairs]]) -> list[list[float]]:
    """Adapt to the tasks one after another, through the service.

    Returns [milliseconds from POST to ready, milliseconds in the inner loop, accuracy] of each task.
    """
    measured = []
    with Client(url, api_key="", timeout=300) as quickstudy:
        for support, query in tqdm(tasks, desc=case.name, disable=None):
            began = time.perf_counter()
            adapter = quickstudy.adapt(support, wait=120)
            took = 1e3 * (time.perf_counter() - began)
            timings = quickstudy.adapter(adapter).timings
            right = []
            for start in range(0, len(query), 200):
                part = query[start : start + 200]
                predictions = quickstudy.predict(adapter, [text for text, _ in part])
                right += [p.label == label for p, (_, label) in zip(predictions, part, strict=True)]
            measured.append([took, timings["tokenize"] + timings["inner_loop"], float(np.mean(right))])
            time.sleep(0.2)
    return measured


def _at_once(url: str, case: Case) -> tuple[list[float], float]:
    """Adapt to the last support sets of a case with 16 clients at once.

    Returns the milliseconds from POST to ready of each support set, and the number of adaptations per second.
    """
    tasks = case.tasks[-(CLIENTS if case.long else 4 * CLIENTS) :]

    def adapt(support: Pairs) -> float:
        with Client(url, api_key="", timeout=1800) as quickstudy:
            began = time.perf_counter()
            quickstudy.adapt(support, wait=1800)
            return 1e3 * (time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        times = list(pool.map(adapt, [support for support, _ in tasks]))
    return times, len(tasks) / (time.perf_counter() - began)


def _rows(
    case: Case, ready: list[list[float]], without_service: dict[str, list[list[float]]], at_once: tuple[list[float], float]
) -> list[Row]:
    bare = [took for took, _ in without_service[BARE]]
    above = [took - inner for took, inner, _ in ready]
    measured = {
        "POST to ready, at rest": [took for took, _, _ in ready],
        "of that, the inner loop": [inner for _, inner, _ in ready],
        "of that, above the inner loop": above,
        BARE: bare,
        f"POST to ready, {CLIENTS} at once": at_once[0],
        **{system: [took for took, _ in without_service[system]] for system in (PEFT, SETFIT) if system in without_service},
    }
    accuracy = {"POST to ready, at rest": [score for *_, score in ready]}
    accuracy |= {system: [score for _, score in without_service[system]] for system in (PEFT, SETFIT) if system in without_service}
    rows = []
    print(f"\n{case.name:<34} {'p50 ms':>9} {'p95 ms':>9} {'accuracy':>9}")
    for system, values in measured.items():
        p50, p95 = statistics.median(values), sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]
        right = accuracy.get(system)
        print(f"{system:<34} {p50:>9.1f} {p95:>9.1f} {'' if right is None else f'{statistics.fmean(right):>9.1%}'}")
        rows += [Row(case.name, system, "p50", p50, "ms"), Row(case.name, system, "p95", p95, "ms")]
        rows += [] if right is None else [Row(case.name, system, "accuracy", statistics.fmean(right), "share")]
    print(f"{CLIENTS} at once: {at_once[1]:.2f} adaptations a second")
    return [*rows, Row(case.name, f"POST to ready, {CLIENTS} at once", "adaptations a second", at_once[1], "1/s")]


if __name__ == "__main__":
    main()
