"""`make bench-metagrad`: measure time, memory and error of meta-gradients of MAML-LoRA.

The model is MiniLM with LoRA (r=8 on query and value). The tasks are 5-way 5-shot with 5 queries per class, from the shipped task
set, and the inner loop is SGD with a linear head that starts from prototypes. The benchmark compares all of our modes with two
peers on the same PEFT model: TorchOpt's functional SGD, and a plain `functional_call` loop. The peers compute one task at a time.

A cell is one system with one number of inner steps, one number of tasks and one precision. It runs in two processes with one thread
each. The first process measures the processor time per task: the median of its runs after the first, or a single run if that takes
over a minute. It also measures the relative error and cosine of θ's meta-gradient against our unrolled one in float32. The second
process measures the peak memory above the loaded model. Its allocator returns freed memory at once, so that the peak is the memory
of the tensors; this is slow, so the first process does not do it. bfloat16 is measured if the processor supports it. The benchmark
can be resumed.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.record import RUNS, Progress, Row, write
from metatrain.deltas import LoRA, LoRAConfig
from metatrain.inner.config import InnerConfig
from metatrain.inner.encoded import Encoded
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, start_rates
from metatrain.inner.supervised import Supervised
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.metagrad import meta_gradient
from metatrain.models.backbone import Attention
from metatrain.models.base import Base
from metatrain.models.inputs import TextInputs
from metatrain.models.loading import load_base
from metatrain.models.precision import resolve
from metatrain.readouts.classes import ClassReadout
from metatrain.readouts.heads import HEAD_LEAVES, linear_from_prototypes
from metatrain.tasks.episodes import Episode, EpisodeSampler, EpisodeShape
from metatrain.tasks.table import STARTER, read_table

OURS: dict[str, Differentiation] = {
    "first order": Differentiation(mode="first_order"),
    "unrolled": Differentiation(mode="unrolled"),
    "checkpointed": Differentiation(mode="checkpointed", segment=2),
    "adjoint, reverse": Differentiation(mode="adjoint", product="reverse"),
    "adjoint, forward": Differentiation(mode="adjoint", product="forward"),
    "adjoint, central": Differentiation(mode="adjoint", product="central"),
}
TORCHOPT, PLAIN = "TorchOpt, unrolled", "functional_call, unrolled"
PEERS = (TORCHOPT, PLAIN)
STEPS, TASKS = (1, 5, 20), (1, 8)
RATE, SCALE = 0.05, 16.0
REFERENCE = "unrolled"


def cells() -> list[tuple[str, int, int, str]]:
    """Return all cells as (system, inner steps K, tasks T, precision)."""
    ours = [(name, k, t, "float32") for k in STEPS for t in TASKS for name in OURS]
    peers = [(name, k, t, "float32") for k in STEPS for t in TASKS for name in PEERS]
    low = [(name, k, t, "bfloat16") for k in STEPS for t in TASKS for name in OURS if "central" not in name]
    return [*ours, *peers, *low]


def operations(name: str, k: int) -> float:
    """Return the cost of one meta-gradient in the mode `name` with K = `k` inner steps, in forward passes.

    A forward pass over the support rows or the query rows costs 1, a backward pass 2. First order costs K (1 + 2) for the inner
    steps, 1 + 2 for the query and 1 + 2 for the prototypes. Differentiating through a step adds twice its forward and backward
    pass. Checkpointing and the reverse-mode adjoint also repeat the step first. Dual numbers and central differences add two
    forward and backward passes a step.
    """
    inner = {"first order": 3, "unrolled": 9, "checkpointed": 12}
    inner |= {"adjoint, reverse": 12, "adjoint, forward": 3 + 6, "adjoint, central": 3 + 6}
    return k * inner[name] + 3 + 3


def episodes(count: int) -> list[Episode]:
    """Draw `count` tasks. Every call returns the same tasks."""
    sampler = EpisodeSampler([read_table(STARTER)], seed=7)
    return [sampler.episode(i, EpisodeShape(5, 5, 5)) for i in range(count)]


def measure(system: str, k: int, count: int, precision: str, out: Path | None) -> dict[str, float]:
    """Measure the time or the memory of one cell. Call this function in a separate process for each cell.

    `k`: the number of inner steps. `count`: the number of tasks. With `out`, measures the seconds per task and writes θ's
    meta-gradient to the file `out`. With `out` None, measures the memory of one run in MB.
    """
    torch.set_num_threads(1)
    needs_eager = system not in ("first order", "adjoint, central")
    attention: Attention = "eager" if needs_eager else "auto"
    base = load_base(precision=precision, attention=attention)  # type: ignore[arg-type]
    tasks = episodes(count)
    run = _ours(base, tasks, k, OURS[system]) if system in OURS else _peer(base, tasks, k, system)
    if out is None:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak, because loading holds bfloat16 weights in float32
        before = _memory("VmRSS")
        run()
        return {"memory": _memory("VmHWM") - before}
    times: list[float] = []
    while not times or (sum(times) < 60 and len(times) < 2) or (sum(times) < 20 and len(times) < 8):
        began = time.process_time()
        gradient = run()
        times.append(time.process_time() - began)
    save_file({name: g.float().contiguous() for name, g in gradient.items()}, out)
    return {"seconds": statistics.median(times[1:] or times) / count}


def _memory(which: str) -> float:
    """Return this process's resident memory in MB: `VmRSS` is the current value, `VmHWM` the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return float(line.split()[1]) / 2**10


def _ours(base: Base, tasks: list[Episode], k: int, mode: Differentiation) -> Callable[[], dict[str, Tensor]]:
    kind, encoded = base.attach(LoRAConfig()), Encoded(base)
    theta = kind.initial(torch.Generator().manual_seed(0), b_std=0.01)
    outer = Outer(theta, start_rates([*theta, *HEAD_LEAVES], RATE), torch.tensor(SCALE))

    def run() -> dict[str, Tensor]:
        batch = Supervised(base, kind, ClassReadout, InnerConfig(steps=k), *encoded.batch(tasks))
        gradients = meta_gradient(batch, outer, Optimizer("sgd"), mode).gradients
        return {name.removeprefix("theta."): g for name, g in gradients.items() if name.startswith("theta.")}

    return run


def _peer(base: Base, tasks: list[Episode], k: int, system: str) -> Callable[[], dict[str, Tensor]]:
    """Return a function that computes θ's mean meta-gradient on PEFT's model, one task at a time."""
    import warnings

    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from torch.func import functional_call

    kind = base.attach(LoRAConfig())
    theta = kind.initial(torch.Generator().manual_seed(0), b_std=0.01)
    plain = load_base(precision="float32", attention="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(plain.model, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
    set_peft_model_state_dict(model, cast(LoRA, kind).peft.to_peft(theta))
    lora = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    scale = torch.tensor(SCALE)

    def features(parameters: dict[str, Tensor], texts: list[str]) -> Tensor:
        rows = cast(TextInputs, plain.inputs).tokenizer(texts, padding=True, return_tensors="pt")
        inputs = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
        hidden = functional_call(model, parameters, (), inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def query_loss(episode: Episode, live: dict[str, Tensor]) -> Tensor:
        support, labels = [text for text, _ in episode.support], torch.tensor([c for _, c in episode.support])
        head = linear_from_prototypes(features(live, support).unsqueeze(0), labels.unsqueeze(0), 5)
        # As in our inner loop, the first gradient does not go through the dependence of the head on the delta.
        phi = {name: leaf.view_as(leaf) for name, leaf in live.items()}
        phi |= {"weight": head.weight[0], "bias": head.bias[0].requires_grad_()}

        def loss(at: dict[str, Tensor], texts: list[str], targets: Tensor) -> Tensor:
            delta = {name: leaf for name, leaf in at.items() if name in live}
            logits = scale * (features(delta, texts) @ at["weight"].T + at["bias"])
            return nn.functional.cross_entropy(logits, targets)

        if system == TORCHOPT:
            import torchopt

            optimizer: Any = torchopt.sgd(lr=RATE)
            state = optimizer.init(phi)
        for _ in range(k):
            leaf_gradients = torch.autograd.grad(loss(phi, support, labels), list(phi.values()), create_graph=True)
            gradients = dict(zip(phi, leaf_gradients, strict=True))
            if system == TORCHOPT:
                updates, state = optimizer.update(gradients, state, inplace=False)
                phi = torchopt.apply_updates(phi, updates, inplace=False)
            else:
                phi = {name: leaf - RATE * gradients[name] for name, leaf in phi.items()}
        return loss(phi, [text for text, _ in episode.query], torch.tensor([c for _, c in episode.query]))

    def run() -> dict[str, Tensor]:
        total = {name: torch.zeros_like(leaf) for name, leaf in lora.items()}
        for episode in tasks:
            live = {name: leaf.clone().requires_grad_() for name, leaf in lora.items()}
            for name, g in zip(live, torch.autograd.grad(query_loss(episode, live), list(live.values())), strict=True):
                total[name] += g / len(tasks)
        return {n.removeprefix("base_model.model.").replace(".default", ""): g for n, g in total.items()}

    return run


def compare(gradient: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative error and the cosine of a gradient against a reference, over all leaves."""
    left, right = (torch.cat([leaves[name].double().flatten() for name in sorted(reference)]) for leaves in (gradient, reference))
    return {
        "relative error": float((left - right).norm() / right.norm()),
        "cosine": float(left @ right / (left.norm() * right.norm())),
    }


@click.command()
@click.option("--cell", nargs=4, type=(str, int, int, str), help="Measure one cell in this process; used by the benchmark itself.")
@click.option("--out", type=click.Path(path_type=Path), help="With --cell: file for the gradient; without it, memory is measured.")
def main(cell: tuple[str, int, int, str] | None, out: Path | None) -> None:
    if cell is not None:
        print(json.dumps(measure(*cell, out)))
        return
    progress, folder = Progress("metagrad"), RUNS / "metagrad"
    folder.mkdir(exist_ok=True)
    has_bfloat16 = resolve("auto", torch.device("cpu")) == torch.bfloat16
    for cell_to_measure in tqdm(cells(), disable=None):
        file = _file(folder, cell_to_measure)
        key = json.dumps(cell_to_measure)
        if progress.get(key) is None or not file.is_file():
            unsupported = cell_to_measure[-1] == "bfloat16" and not has_bfloat16
            progress.put(
                key, {"failed": "no bfloat16 in this processor"} if unsupported else _measure_in_processes(cell_to_measure, file)
            )
    rows = _rows(progress, folder)
    _print(rows)
    print(f"\nwrote {write('metagrad', rows, processor_threads=1)}")


def _file(folder: Path, cell: tuple[str, int, int, str]) -> Path:
    return folder / f"{'-'.join(map(str, cell)).replace(' ', '_').replace(',', '')}.safetensors"


def _measure_in_processes(cell: tuple[str, int, int, str], file: Path) -> dict[str, float | str]:
    command = [sys.executable, "-m", "benchmarks.metagrad", "--cell", *map(str, cell)]
    trimmed_heap = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    measured: dict[str, float | str] = {}
    for options, environment in ((["--out", str(file)], {}), ([], trimmed_heap)):
        done = subprocess.run([*command, *options], capture_output=True, text=True, env={**os.environ, **environment}, check=False)
        if done.returncode:
            reason = "killed: no memory left" if done.returncode < 0 else done.stderr.strip().splitlines()[-1]
            return {**measured, "failed": reason}
        measured |= json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _rows(progress: Progress, folder: Path) -> list[Row]:
    rows = []
    for cell in cells():
        system, k, count, precision = cell
        measured = progress.get(json.dumps(cell))
        case = f"K={k}, T={count}, {precision}"
        if "failed" in measured:
            rows.append(Row(case, system, f"not measured ({measured['failed']})", 0.0, ""))
        if "seconds" not in measured:
            continue
        rows.append(Row(case, system, "seconds a task", measured["seconds"], "s"))
        if "memory" in measured:
            rows.append(Row(case, system, "memory above the model", measured["memory"], "MB"))
        files = [_file(folder, each) for each in (cell, (REFERENCE, k, count, "float32"))]
        if all(file.is_file() for file in files):
            for metric, value in compare(load_file(files[0]), load_file(files[1])).items():
                rows.append(Row(case, system, metric, value, ""))
        if system in OURS:
            rows.append(
                Row(case, system, "operations over first order's", operations(system, k) / operations("first order", k), "")
            )
    return rows


def _print(rows: list[Row]) -> None:
    values = {(row.case, row.system, row.metric): row.value for row in rows}
    for case in dict.fromkeys(row.case for row in rows):
        first = values.get((case, "first order", "seconds a task"), math.nan)
        titles = f"{'s a task':>9} {'of first':>9} {'by count':>9} {'MB':>8} {'rel. error':>11} {'cosine':>10}"
        print(f"\n{case}\n  {'':<28} {titles}")
        for system in dict.fromkeys(row.system for row in rows if row.case == case):
            cell = {metric: values.get((case, system, metric), math.nan) for metric in _METRICS}
            seconds, memory, error, cosine, count = (cell[metric] for metric in _METRICS)
            times = f"{seconds:>9.3f} {seconds / first:>9.2f} {count:>9.2f}"
            print(f"  {system:<28} {times} {memory:>8.0f} {error:>11.1e} {cosine:>10.6f}")


_METRICS = ("seconds a task", "memory above the model", "relative error", "cosine", "operations over first order's")

if __name__ == "__main__":
    main()
