"""`make plots`: draw plots in `docs/plots/` from the results in `benchmarks/results/*.json`."""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.curves import SMALL, TEXT
from benchmarks.folds import FOLDS
from benchmarks.metagrad import PEERS
from benchmarks.metagrad import STEPS as METAGRAD_STEPS
from benchmarks.record import RESULTS
from benchmarks.transfer import FROZEN, OURS, PLAIN, SETFIT, SHOTS, STEPS, rows_by

PLOTS = Path(__file__).resolve().parents[1] / "docs" / "plots"


def accuracy_by_step() -> Path:
    """Plot the accuracy on held-out data sets against the number of inner steps.

    There is one panel for each number of shots, with one line for each fold. Dashed lines are frozen prototypes, crosses are plain
    LoRA from zero, and stars are SetFit.
    """
    values = rows_by(json.loads((RESULTS / "transfer.json").read_text(encoding="utf-8"))["rows"])
    figure, axes = plt.subplots(1, len(SHOTS["near"]), figsize=(11, 3.6), layout="constrained")
    for axis, shots in zip(axes, SHOTS["near"], strict=True):
        for color, fold in zip(("tab:blue", "tab:orange", "tab:green"), FOLDS, strict=True):
            case = f"{fold}, 5-way {shots}-shot"
            if (case, FROZEN, "accuracy") not in values:
                continue  # this fold has not been run yet
            ours = [(n, 100 * values[key]) for n in STEPS if (key := (case, f"{OURS}, {n} steps", "accuracy")) in values]
            axis.plot(*zip(*ours, strict=True), marker="o", color=color, label=fold)
            axis.axhline(100 * values[case, FROZEN, "accuracy"], color=color, linestyle="--", linewidth=1)
            peers = {"x": values.get((case, PLAIN, "accuracy"))}
            if (over := values.get((case, OURS, f"over {SETFIT}"))) is not None:
                peers["*"] = values[case, OURS, "accuracy"] - over  # SetFit ran on only some of the episodes
            for marker, accuracy in peers.items():
                if accuracy is not None:
                    axis.plot([max(STEPS) + 1], [100 * accuracy], marker=marker, color=color)
        axis.set(title=f"5-way {shots}-shot", xlabel="inner steps", xticks=STEPS)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(title="trained without", frameon=False)
    signs = "×: plain LoRA from zero, 10 steps   ★: SetFit, by its distance from ours on the same episodes"
    figure.suptitle(f"dashed: frozen prototypes   {signs}", fontsize=9)
    return _saved(figure, "accuracy-by-step.svg")


def time_and_memory() -> Path:
    """Plot the time and memory of each way to compute the meta-gradient, for one task in float32.

    There is one panel for each number of inner steps.
    """
    rows = json.loads((RESULTS / "metagrad.json").read_text(encoding="utf-8"))["rows"]
    values = rows_by(rows)
    figure, axes = plt.subplots(1, len(METAGRAD_STEPS), figsize=(11, 3.6), layout="constrained")
    for axis, k in zip(axes, METAGRAD_STEPS, strict=True):
        case = f"K={k}, T=1, float32"
        for number, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
            if (case, system, "seconds a task") in values:
                point = values[case, system, "memory above the model"], values[case, system, "seconds a task"]
                marker = "x" if system in PEERS else "o"
                axis.plot(*point, marker=marker, color=f"C{number}", linestyle="", label=system)
        axis.set(title=f"K = {k}", xlabel="MB above the model", xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds a task")
    axes[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _saved(figure, "time-and-memory.svg")


def jobs_under_faults() -> Path:
    """Plot each job as a line from its acceptance to its end, and the injected faults above the jobs.

    The jobs are in the order in which they were sent. Jobs with more than one attempt are red.
    """
    document = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))["timeline"]
    figure, (top, below) = plt.subplots(2, 1, figsize=(11, 6.5), sharex=True, layout="constrained", height_ratios=[1, 2])
    kinds = sorted({kind for kind, _, _ in document["faults"]})
    for kind, began, ended in document["faults"]:
        top.plot([began, max(ended, began + 0.3)], [kinds.index(kind)] * 2, color="tab:gray", linewidth=5, solid_capstyle="butt")
    top.set_yticks(range(len(kinds)), kinds, fontsize=8)
    top.grid(alpha=0.3)
    for number, (accepted, ended, attempts) in enumerate(document["jobs"]):
        color = "tab:red" if (attempts or 1) > 1 else "tab:blue"
        below.plot([accepted, ended], [number, number], color=color, linewidth=1.2)
    below.set(xlabel="seconds", ylabel="job, by number")
    below.grid(alpha=0.3)
    figure.suptitle("jobs from acceptance to end (red: more than one attempt), and the faults meanwhile", fontsize=10)
    return _saved(figure, "jobs-under-faults.svg")


def learning_curves() -> Path:
    """Plot the learning curve of every algorithm.

    On small nets, the curve is the query loss divided by its value before training. On texts, it is the validation accuracy.
    """
    rows = json.loads((RESULTS / "curves.json").read_text(encoding="utf-8"))["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, case in zip(axes, (SMALL, TEXT), strict=True):
        for number, algorithm in enumerate(dict.fromkeys(row["system"] for row in rows)):
            curve = [row for row in rows if (row["case"], row["system"]) == (case, algorithm)]
            steps = [int(row["metric"].removeprefix("after ").removesuffix(" steps")) for row in curve]
            scale = curve[0]["value"] if case == SMALL else 1.0
            axis.plot(steps, [row["value"] / scale for row in curve], marker=".", color=f"C{number}", label=algorithm)
        axis.set(title=case, xlabel="outer steps", ylabel="query loss, relative" if case == SMALL else "validation accuracy, %")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return _saved(figure, "learning-curves.svg")


def _saved(figure: Figure, name: str) -> Path:
    PLOTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOTS / name, metadata={"Date": None})
    return PLOTS / name


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "quickstudy"  # equal results then give equal files
    plots = {"transfer": accuracy_by_step, "metagrad": time_and_memory, "faults": jobs_under_faults, "curves": learning_curves}
    for results, plot in plots.items():
        if (RESULTS / f"{results}.json").is_file():
            print(f"wrote {plot()}")
        else:
            print(f"skipped a plot: benchmarks/results/{results}.json does not exist; run its benchmark first")


if __name__ == "__main__":
    main()
