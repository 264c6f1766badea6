"""`make bench-papers`: repeat the field's first experiments and compare with the papers' results.

- Sinusoids (Finn et al. 2017, §5.1): 5-shot regression, mean squared error after 1 and 10 inner steps.
- Omniglot (`DATA/omniglot`, the split of Vinyals et al. 2016, with classes rotated by quarter turns): 5-way 1-shot for every
  algorithm, 20-way 1-shot for MAML and iMAML. The net has four convolutions, with batch normalisation by each task's own batch
  (transductive, as in the papers).

A result is the mean over 600 test tasks with its 95 % interval. Every run writes a checkpoint and resumes from it. `--minutes`
limits one call; the unfinished runs share that time equally. Each experiment writes `results/papers-EXPERIMENT.json`. The
file contains only runs that were trained to the end; unfinished runs are only printed, with their number of outer steps. A GPU is
used if there is one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.record import RUNS, Row, write
from metatrain.errors import NonFinite
from metatrain.inner.loop import trajectory
from metatrain.inner.nets import EmbeddingTasks, Examples, NetTasks, classify, parameters, regress
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, start_rates
from metatrain.meta.algorithms import ANIL, FOMAML, IMAML, MAML, Algorithm, MetaSGD, ProtoNet, Reptile
from metatrain.meta.differentiation import Differentiation
from metatrain.tasks.arrays import ArraySampler, read_npz
from metatrain.tasks.episodes import EpisodeShape
from metatrain.training.outer_step import CHECKPOINT, OuterConfig, OuterState, outer_step, unusable_gradient
from metatrain.training.recipe import ClassList

TESTED = 600
PARTS = ("sinusoid", "5-way", "20-way")


@dataclass(frozen=True)
class Run:
    """One row of the table: how an algorithm is trained and tested.

    `tasks(part, step, steps)` returns the meta-batch number `step` of the part "train" or "test", with `steps` inner steps. Rows
    with the same `training` and `system` share one training run and differ only in their test. `paper` is the paper's result, if it
    has one.
    """

    training: str
    case: str
    system: str
    algorithm: Algorithm
    tasks: Callable[[str, int, int], NetTasks]
    start: Outer
    optimizer: Optimizer
    steps: int
    tested_steps: int
    outer: OuterConfig
    paper: float | None
    unit: str

    @property
    def folder(self) -> Path:
        return RUNS / "papers" / f"{self.training}-{self.system}".replace(" ", "_").replace(",", "")

    @property
    def identity(self) -> str:
        """The identity that a checkpoint must have to belong to this run."""
        return f"{self.training}, {self.system}, {self.outer.model_dump_json(exclude_defaults=True)}"

    def load_state(self) -> OuterState:
        """Return the state of the last checkpoint, or the initial state if there is none."""
        return OuterState.load(self.folder / CHECKPOINT, self.identity) or OuterState.start(self.start, self.algorithm.learns)


def train_and_test(runs: list[Run], minutes: float | None) -> list[Row]:
    """Train the unfinished runs, test all and print their results.

    Returns the rows of the runs that are trained to the end. `minutes`: the limit on the time for training; None means no limit.
    """
    rows = []
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    states = {run.folder: run.load_state() for run in runs}
    untrained = list(dict.fromkeys(run.folder for run in runs if states[run.folder].step < run.outer.steps))
    for run in runs:
        state = states[run.folder]
        if run.folder in untrained:
            now = time.monotonic()
            failure = train(run, state, now + max(0.0, until - now) / len(untrained))
            if failure:
                print(f"{run.training}, {run.system}: {failure}", flush=True)
            untrained.remove(run.folder)
        try:
            mean, half = test(run, state)
        except NonFinite as problem:
            print(f"{run.case}, {run.system}: {problem}", flush=True)
            if state.step >= run.outer.steps:
                rows.append(Row(run.case, f"{run.system} (diverged: {problem})", "outer steps", state.step, ""))
            continue
        done = state.step >= run.outer.steps
        system = run.system if done else f"{run.system} (unfinished)"
        paper = "" if run.paper is None else f"{run.paper:>10.2f}"
        print(
            f"{run.case:<28} {system:<26} {mean:>8.2f} ± {half:<6.2f} {paper:>10} {state.step:>7} of {run.outer.steps}", flush=True
        )
        if done:
            rows += finished_rows(run, state, mean, half)
    return rows


def finished_rows(run: Run, state: OuterState, mean: float, half: float) -> list[Row]:
    """Return the rows of a run that is trained to the end.

    `mean` and `half` are the result of `test`: the mean score and half of its 95 % interval.
    """
    rows = [Row(run.case, run.system, "result", mean, run.unit), Row(run.case, run.system, "95 % interval, half", half, run.unit)]
    rows.append(Row(run.case, run.system, "outer steps", state.step, ""))
    if state.skipped:
        rows.append(Row(run.case, run.system, "of them skipped, not finite", state.skipped, ""))
    if run.paper is not None:
        rows.append(Row(run.case, run.system, "the paper's", run.paper, run.unit))
    return rows


def train(run: Run, state: OuterState, until: float) -> str:
    """Train until all outer steps are done, or until the `time.monotonic` time `until`.

    Returns the message of the error that ended the training, or an empty string.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    saved, failure = time.monotonic(), ""
    with tqdm(total=run.outer.steps, initial=state.step, desc=f"{run.training}, {run.system}", leave=False, disable=None) as bar:
        while state.step < run.outer.steps and time.monotonic() < until:
            tasks, reason = run.tasks("train", state.step, run.steps), ""
            outer = Outer.from_leaves(state.leaves).on(tasks.support.x.device)
            try:
                gradient = run.algorithm.meta_gradient(tasks, outer, run.optimizer, state.step)
            except NonFinite as problem:  # `outer_step` skips and counts the step, as in `metatrain train`
                gradient, reason = unusable_gradient(state.leaves), str(problem)
            try:
                outer_step(run.outer, state, gradient, reason)
            except NonFinite as problem:
                failure = str(problem)
                break
            bar.update(1)
            if time.monotonic() - saved > 60:
                state.save(run.folder / CHECKPOINT, run.identity)
                saved = time.monotonic()
    state.save(run.folder / CHECKPOINT, run.identity)
    return failure


def test(run: Run, state: OuterState) -> tuple[float, float]:
    """Return the mean over the test tasks and half of its 95 % interval.

    The score is the accuracy in percent, or the mean squared error.
    """
    scores: list[float] = []
    number = 0
    while len(scores) < TESTED:
        tasks = run.tasks("test", number, run.tested_steps)
        outer = Outer.from_leaves(state.leaves).on(tasks.support.x.device)
        for point in trajectory(tasks, outer, run.optimizer):
            if point.step == point.of:
                with torch.no_grad():
                    loss, score = tasks.query_loss(point.phi, outer, point.step)
        scores += (100 * score if run.unit == "%" else loss).tolist()
        number += 1
    values = np.array(scores[:TESTED])
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def sinusoid_runs() -> list[Run]:
    """Return the runs on sinusoids. The net has two hidden layers of 40 units; a meta-batch has 25 tasks.

    The papers' results are from Finn et al. 2017 and Li et al. 2017 (table 1, K = 5).
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))

    def tasks(part: str, step: int, steps: int, moved: tuple[str, ...] = ()) -> NetTasks:
        return NetTasks(net, *sinusoids(part, step), regress, steps=steps, moved=moved)

    def last_layer_tasks(part: str, step: int, steps: int) -> NetTasks:
        return tasks(part, step, steps, ("4.",))

    theta = parameters(net)
    outer = OuterConfig(steps=70_000, tasks=25, learning_rate=1e-3, rate_learning_rate=1e-3, clip=None, warmup=0, decay="none")
    sgd, slow = Optimizer("sgd"), Outer(theta, start_rates(theta, 0.01))
    base = Run("sinusoid, 5-shot", "sinusoid, 5-shot, 1 step", "MAML", MAML(), tasks, slow, sgd, 1, 1, outer, 1.13, "MSE")
    by_parameter = Outer(theta, {name: torch.full((1, *leaf.shape), 0.01) for name, leaf in theta.items()})
    plain = outer.model_copy(update={"optimizer": "sgd", "learning_rate": 1.0, "decay": "linear"})
    imaml = IMAML(strength=2.0, gradient=Differentiation(mode="implicit", iterations=5, damping=10.0))
    runs = [
        base,
        replace(base, system="FOMAML", algorithm=FOMAML(), paper=None),
        replace(base, system="Meta-SGD", algorithm=MetaSGD(), start=by_parameter, paper=0.90),
        replace(base, system="ANIL", algorithm=ANIL(), tasks=last_layer_tasks, paper=None),
        replace(base, system="Reptile", algorithm=Reptile(), steps=5, outer=plain, paper=None),
        replace(base, system="iMAML", algorithm=imaml, steps=10, paper=None),
    ]
    return [*runs, *(replace(run, case="sinusoid, 5-shot, 10 steps", tested_steps=10, paper=None) for run in runs)]


def sinusoids(part: str, step: int, count: int = 25, shots: int = 5) -> tuple[Examples, Examples]:
    """Draw support and query points of `count` sinusoids, [count, points, 1].

    y = A sin(x − p), with A in [0.1, 5], p in [0, π] and x in [−5, 5]. There are 10 query points in training, 100 in a test.
    """
    generator = torch.Generator().manual_seed(2 * step + (part == "test") + 10**6)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    amplitude, phase = uniform(0.1, 5.0, count, 1, 1), uniform(0.0, math.pi, count, 1, 1)
    x = uniform(-5.0, 5.0, count, shots + (100 if part == "test" else 10), 1)
    y = amplitude * torch.sin(x - phase)
    return Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])


class ConvNet(nn.Module):
    """The net of Finn et al. 2017, §5.2, for Omniglot.

    Four strided 3×3 convolutions of 64 filters, each followed by batch normalisation with the statistics of the current batch,
    and by ReLU. Then the mean over all positions, and a linear layer with `outputs` outputs; 0 means no linear layer.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (1, 64, 64, 64, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(into, out, 3, stride=2, padding=1), nn.BatchNorm2d(out, track_running_stats=False), nn.ReLU())
            for into, out in pairwise(widths)
        ]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(64, outputs) if outputs else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(images).mean((2, 3)))
        return outputs


class Omniglot:
    """Meta-batches of `ways`-way 1-shot tasks of Omniglot, in the splits of Vinyals et al. 2016.

    A meta-batch has 32 tasks of 5 ways, or 16 tasks of 20 ways. `net` is a classifier. `embedding` is a second net, without the
    linear layer at the end; only `prototype_tasks` uses it.
    """

    def __init__(self, data: Path, ways: int) -> None:
        self.ways, self.count = ways, 32 if ways == 5 else 16
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        arrays = read_npz(data / "omniglot" / "omniglot28.npz")
        parts = {name: ClassList(file="omniglot/splits.json", id="vinyals", part=name) for name in ("train", "valid", "test")}
        classes = {name: listed.labels(data) for name, listed in parts.items()}
        training = arrays.only([*classes["train"], *classes["valid"]])
        self.samplers = {"train": ArraySampler(training, 0, rotations=True), "test": ArraySampler(arrays.only(classes["test"]), 1)}
        torch.manual_seed(0)
        self.net, self.embedding = ConvNet(ways).to(self.device), ConvNet(0).to(self.device)

    def _draw(self, part: str, step: int, *, shots: int, count: int) -> tuple[Examples, Examples]:
        return tuple(  # type: ignore[return-value]
            Examples((1 - e.x.unsqueeze(2) / 255).to(self.device), e.y.to(self.device))
            for e in self.samplers[part].tasks(step, EpisodeShape(self.ways, shots, 1 if part == "train" else 5), count)
        )

    def tasks(self, part: str, step: int, steps: int, moved: tuple[str, ...] = ()) -> NetTasks:
        return NetTasks(self.net, *self._draw(part, step, shots=1, count=self.count), classify, steps=steps, moved=moved)

    def last_layer_tasks(self, part: str, step: int, steps: int) -> NetTasks:
        """Return tasks in which the inner loop moves only the last layer."""
        return self.tasks(part, step, steps, ("head.",))

    def reptile_tasks(self, part: str, step: int, steps: int) -> NetTasks:
        """Return five 10-shot tasks for training, or 1-shot tasks for a test.

        In training, an inner step uses ten rows, and no row is used twice.
        """
        if part == "test":
            return self.tasks(part, step, steps)
        support, query = self._draw(part, step, shots=10, count=5)
        order = torch.rand(5, 10 * self.ways, generator=torch.Generator().manual_seed(step)).argsort(1).to(self.device)
        task = torch.arange(5, device=self.device).unsqueeze(1)
        shuffled = Examples(support.x[task, order], support.y[task, order])
        return NetTasks(self.net, shuffled, query, classify, steps=steps, rows_per_step=10)

    def prototype_tasks(self, part: str, step: int, steps: int) -> NetTasks:
        """Return tasks for the embedding, without inner steps."""
        return EmbeddingTasks(self.embedding, *self._draw(part, step, shots=1, count=self.count), steps=0)


def omniglot_runs(data: Path, ways: int) -> list[Run]:
    """Return the runs on Omniglot.

    The settings are those of Finn et al. 2017 (appendix A.1), Nichol et al. 2018 (table 6) and Rajeswaran et al. 2019 (appendix),
    and of Snell et al. 2017 for prototypes. Snell et al. train 60-way; here, training has the same number of ways as the test.
    """
    omniglot = Omniglot(data, ways)
    theta = {name: leaf.cpu() for name, leaf in parameters(omniglot.net).items()}
    maml_paper, imaml_paper = {5: (98.7, 99.16), 20: (95.8, 94.46)}[ways]
    rate, steps, tested_steps = (0.4, 1, 3) if ways == 5 else (0.1, 5, 5)
    outer = OuterConfig(
        steps=60_000, tasks=omniglot.count, learning_rate=1e-3, rate_learning_rate=1e-3, clip=None, warmup=0, decay="none"
    )
    case = f"Omniglot, {ways}-way 1-shot"
    start, sgd = Outer(theta, start_rates(theta, rate)), Optimizer("sgd")
    maml = Run(case, case, "MAML", MAML(), omniglot.tasks, start, sgd, steps, tested_steps, outer, maml_paper, "%")
    imaml = replace(
        maml,
        system="iMAML",
        algorithm=IMAML(strength=2.0, gradient=Differentiation(mode="implicit", iterations=5, damping=10.0)),
        steps=16,
        tested_steps=16,
        paper=imaml_paper,
        start=Outer(theta, start_rates(theta, 0.1)),
    )
    return [maml, imaml, *(_five_way_runs(maml, omniglot, theta) if ways == 5 else ())]


def _five_way_runs(maml: Run, omniglot: Omniglot, theta: dict[str, Tensor]) -> list[Run]:
    """Return the runs that exist only for 5-way. Settings that are not given here are those of `maml`."""
    embedding = Outer({name: leaf.cpu() for name, leaf in parameters(omniglot.embedding).items()}, {})
    by_parameter = Outer(theta, {name: torch.full((1, *leaf.shape), 0.4) for name, leaf in theta.items()})
    reptile = maml.outer.model_copy(
        update={"optimizer": "sgd", "learning_rate": 1.0, "decay": "linear", "steps": 100_000, "tasks": 5}
    )
    return [
        replace(maml, system="FOMAML", algorithm=FOMAML(), paper=98.3),
        replace(maml, system="Meta-SGD", algorithm=MetaSGD(), start=by_parameter, paper=99.53),
        replace(maml, system="ANIL", algorithm=ANIL(), tasks=omniglot.last_layer_tasks, paper=None),
        replace(
            maml,
            system="Reptile",
            algorithm=Reptile(),
            tasks=omniglot.reptile_tasks,
            optimizer=Optimizer("adam", beta1=0.0),
            start=Outer(theta, start_rates(theta, 1e-3)),
            steps=5,
            tested_steps=50,
            outer=reptile,
            paper=97.68,
        ),
        replace(
            maml,
            system="ProtoNet",
            algorithm=ProtoNet(),
            tasks=omniglot.prototype_tasks,
            start=embedding,
            tested_steps=0,
            paper=98.8,
        ),
    ]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--minutes", type=float, help="Stop training after this time and report the results so far; a later call resumes.")
@click.option("--only", type=click.Choice(PARTS), help="Run only this part, so that processes can share the work.")
def main(data: Path, minutes: float | None, only: str | None) -> None:
    parts = (only,) if only else PARTS
    print(f"{'':<55} {'result':>17} {'paper':>10} {'outer steps':>15}")
    for part in parts:
        runs = sinusoid_runs() if part == "sinusoid" else omniglot_runs(data, int(part.removesuffix("-way")))
        rows = train_and_test(runs, None if minutes is None else minutes / len(parts))
        if rows:
            print(f"wrote {write(f'papers-{part}', rows, test_tasks=TESTED)}")


if __name__ == "__main__":
    main()
