"""Reports of training runs: an HTML page with curves after the run, and TensorBoard scalars during it.

The page is self-contained: its plots are inline SVG. Reports need extra packages: `pip install 'quickstudy-server[report]'`.
"""

import html
import io
import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from metatrain.artifacts.files import write_atomically
from metatrain.artifacts.initialization import Initialization, load_initialization
from metatrain.deltas.sites import layer_of
from metatrain.errors import MetatrainError
from metatrain.inner.encoded import Encoded
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.training.data import read_data, validation_episodes
from metatrain.training.evaluate import evaluate_steps
from metatrain.training.events import OnEvent
from metatrain.training.history import read_history
from metatrain.training.recipe import Recipe

LOG = "log.jsonl"


def logger(folder: Path) -> OnEvent:
    """Return a callback that appends every event to `folder`/log.jsonl.

    Unlike `history.jsonl`, which has equal bytes for equal runs, the log includes times and the peak memory.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def log(event: dict[str, Any]) -> None:
        with (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**event, "peak_memory_mb": peak_memory()}) + "\n")

    return log


def tensorboard(folder: Path) -> OnEvent:
    """Return a callback that writes scalars to `folder`/tensorboard.

    Raises MetatrainError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MetatrainError("--tensorboard needs the package tensorboard: pip install 'quickstudy-server[report]'") from error
    writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(event: dict[str, Any]) -> None:
        for name in ("loss", "accuracy", "gradient_norm", "seconds", "score", "residual", "skipped"):
            if event["event"] in ("step", "validation") and name in event:
                writer.add_scalar(f"{event['event']}/{name}", event[name], event["step"])
        for part in ("by_shots", "by_set"):
            for name, value in event.get(part, {}).items():
                writer.add_scalar(f"validation/{part}/{name}", value, event["step"])
        writer.flush()

    return write


def peak_memory() -> float:
    """Return this process's peak resident memory in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def check_installed() -> None:
    """Raise MetatrainError if matplotlib, which draws reports, is not installed.

    If it is, select its SVG backend.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MetatrainError("--report needs the package matplotlib: pip install 'quickstudy-server[report]'") from error
    mpl.use("svg")


def write_report(recipe: Recipe, data: Path, folder: Path) -> Path:
    """Write `report.html` of the run in `folder`, and return its path.

    The report shows the loss and accuracy curves of the run, the accuracy on the validation episodes by inner step, the learned
    rates by layer, time and memory. Raises MetatrainError if matplotlib is not installed, or if the run has not ended.
    """
    check_installed()
    history = read_history(folder)
    base = load_base(recipe.base.model, precision=recipe.base.precision, max_length=recipe.base.max_length)
    init = load_initialization(folder / recipe.name, base)
    by_step = accuracy_by_inner_step(base, init, recipe, data)
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines() if (folder / LOG).is_file() else []
    parts = [
        ("Outer loop", _curves(history)),
        ("Validation by data set", _by_set(history)),
        ("Accuracy by inner step, on validation episodes", _by_inner_step(by_step)),
        ("Learned rates by layer", _rates(init)),
        ("Time and memory", _costs([json.loads(line) for line in lines])),
    ]
    body = "".join(f"<h2>{html.escape(title)}</h2>\n{svg}\n" for title, svg in parts if svg)
    page = _PAGE.format(name=html.escape(recipe.name), facts=_facts(recipe, init, history), body=body)
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


def accuracy_by_inner_step(base: Base, init: Initialization, recipe: Recipe, data: Path) -> dict[int, dict[int, float]]:
    """Return {shots: {inner steps: mean accuracy}} over the run's validation episodes."""
    _, valid_sets, _ = read_data(recipe, data)
    accuracy: dict[int, dict[int, float]] = {}
    encoded = Encoded(base)
    for shots in recipe.validation.shots:
        episodes = [e for e in validation_episodes(recipe, valid_sets) if len(e.support) == shots * len(e.labels)]
        inner = init.inner.meta_trained
        most = max(inner.most_steps, 1) if shots > 1 or inner.teaches_one_shot(len(episodes[0].support)) else 0
        scores = evaluate_steps(base, replace(init, inner=inner), episodes, range(most + 1), encoded=encoded)
        accuracy[shots] = {step: score.mean for step, score in scores.items()}
    return accuracy


def _curves(history: list[dict[str, Any]]) -> str:
    steps = [event for event in history if event["event"] == "step" and "loss" in event]
    validations = [event for event in history if event["event"] == "validation"]
    figure, (left, right) = _figure(2)
    left.plot([e["step"] for e in steps], [e["loss"] for e in steps], alpha=0.35, color="tab:blue")
    left.plot(*_smoothed([e["step"] for e in steps], [e["loss"] for e in steps]), color="tab:blue")
    left.set(title="query loss after adaptation", xlabel="outer step")
    right.plot(
        *_smoothed([e["step"] for e in steps], [100 * e["accuracy"] for e in steps]), color="tab:gray", label="training tasks"
    )
    for shots in validations[0]["by_shots"] if validations else ():
        points = [(e["step"], 100 * e["by_shots"][shots]) for e in validations]
        right.plot(*zip(*points, strict=True), marker="o", label=f"validation, {shots}-shot")
    right.set(title="accuracy, %", xlabel="outer step")
    right.legend(frameon=False)
    return _svg(figure)


def _by_set(history: list[dict[str, Any]]) -> str:
    validations = [event for event in history if event["event"] == "validation"]
    if not validations:
        return ""
    figure, (axis,) = _figure(1)
    for name in validations[0]["by_set"]:
        axis.plot([e["step"] for e in validations], [100 * e["by_set"][name] for e in validations], marker="o", label=name)
    axis.set(xlabel="outer step", ylabel="accuracy, %")
    axis.legend(frameon=False)
    return _svg(figure)


def _by_inner_step(by_step: dict[int, dict[int, float]]) -> str:
    figure, (axis,) = _figure(1)
    for shots, accuracy in by_step.items():
        axis.plot(list(accuracy), [100 * value for value in accuracy.values()], marker="o", label=f"{shots}-shot")
    axis.set(xlabel="inner steps", ylabel="accuracy, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    return _svg(figure)


def _rates(init: Initialization) -> str:
    """Plot the learned inner rates by layer, and return the SVG.

    There is one point for each leaf of φ and each step: the leaf's rate, or the mean rate of its parameters.
    """
    figure, (axis,) = _figure(1)
    steps = max((rate.shape[0] for rate in init.rates.values()), default=1)
    layers = sorted({layer for name in init.rates if (layer := layer_of(name)) is not None})
    positions = {layer: position for position, layer in enumerate(layers)}
    for step in range(steps):
        points = [
            (positions.get(layer_of(name) or 0, -1) if layer_of(name) is not None else -1, rate[step])
            for name, rate in init.rates.items()
        ]
        shown = [(position + 0.15 * (step - (steps - 1) / 2), float(rate.mean())) for position, rate in points]
        axis.scatter(*zip(*shown, strict=True), s=18, alpha=0.7, label=f"step {step + 1}" if steps > 1 else None)
    axis.set_xticks([-1, *positions.values()], ["head", *(f"layer {layer}" for layer in layers)])
    axis.set(ylabel="inner rate α", yscale="log")
    if steps > 1:
        axis.legend(frameon=False)
    return _svg(figure)


def _costs(log: list[dict[str, Any]]) -> str:
    steps = list(
        {event["step"]: event for event in log if event["event"] == "step"}.values()
    )  # keeps one event per step, because a resumed run logs some steps twice
    if not steps:
        return ""
    figure, (left, right) = _figure(2)
    left.plot([e["step"] for e in steps], [e["seconds"] for e in steps], color="tab:blue")
    left.set(title="seconds per outer step", xlabel="outer step", ylim=(0, 1.05 * max(e["seconds"] for e in steps)))
    right.plot([e["step"] for e in steps], [e["peak_memory_mb"] for e in steps], color="tab:red")
    most = max(e["peak_memory_mb"] for e in steps)
    right.set(title="peak memory of the process, MB", xlabel="outer step", ylim=(0, 1.05 * most))
    return _svg(figure)


def _facts(recipe: Recipe, init: Initialization, history: list[dict[str, Any]]) -> str:
    validations = [event for event in history if event["event"] == "validation"]
    facts = {
        "algorithm": init.algorithm,
        "delta": json.dumps(recipe.delta.model_dump(mode="json")),
        "inner loop": json.dumps(init.inner.model_dump(mode="json", exclude_defaults=True)),
        "validation before training": f"{validations[0]['score']:.2%}" if validations else "none",
        "best validation": f"{init.provenance['validation_score']:.2%} at outer step {init.provenance['outer_steps']}",
        "training sets": ", ".join(init.provenance["training_sets"]),
        "steps skipped": str(max((event.get("skipped", 0) for event in history), default=0)),
        "recipe digest": init.provenance["recipe_digest"],
    }
    return "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())


def _smoothed(x: list[int], y: list[float], width: int = 15) -> tuple[list[int], list[float]]:
    """Return x, and the moving average of y over the last `width` points."""
    return x, [sum(part) / len(part) for i in range(len(y)) for part in [y[max(0, i - width + 1) : i + 1]]]


def _figure(panels: int) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(4.6 * panels if panels > 1 else 6, 3.2), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, axes[0]


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    plt.close(figure)
    return content.getvalue()[content.getvalue().index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
th {{ text-align: left; padding-right: 1rem; vertical-align: top; font-weight: 600; white-space: nowrap; }}
td {{ overflow-wrap: anywhere; }} svg {{ max-width: 100%; height: auto; }}</style></head>
<body><h1>{name}</h1><table>{facts}</table>
{body}</body></html>
"""
