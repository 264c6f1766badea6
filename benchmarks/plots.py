"""`make plots`: pictures of the results that are better looked at than read, from `benchmarks/results/*.json` to `docs/plots/`."""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from benchmarks.folds import FOLDS
from benchmarks.record import RESULTS
from benchmarks.transfer import FROZEN, OURS, PLAIN, SETFIT, SHOTS, STEPS, rows_by

PLOTS = Path(__file__).resolve().parents[1] / "docs" / "plots"


def accuracy_by_step() -> Path:
    """One panel for each number of shots, one line a fold: accuracy over inner steps on data sets that were not trained on. Dashes:
    frozen prototypes; dots: SetFit; crosses: plain LoRA from zero."""
    values = rows_by(json.loads((RESULTS / "transfer.json").read_text(encoding="utf-8"))["rows"])
    figure, axes = plt.subplots(1, len(SHOTS["near"]), figsize=(11, 3.6), layout="constrained")
    for axis, shots in zip(axes, SHOTS["near"], strict=True):
        for color, fold in zip(("tab:blue", "tab:orange", "tab:green"), FOLDS, strict=True):
            case = f"{fold}, 5-way {shots}-shot"
            ours = [(n, 100 * values[key]) for n in STEPS if (key := (case, f"{OURS}, {n} steps", "accuracy")) in values]
            axis.plot(*zip(*ours, strict=True), marker="o", color=color, label=fold)
            axis.axhline(100 * values[case, FROZEN, "accuracy"], color=color, linestyle="--", linewidth=1)
            for system, marker in ((PLAIN, "x"), (SETFIT, "*")):
                if (case, system, "accuracy") in values:
                    axis.plot([max(STEPS) + 1], [100 * values[case, system, "accuracy"]], marker=marker, color=color)
        axis.set(title=f"5-way {shots}-shot", xlabel="inner steps", xticks=STEPS)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(title="trained without", frameon=False)
    figure.suptitle("dashed: frozen prototypes   ×: plain LoRA from zero, 10 steps   ★: SetFit", fontsize=9)
    PLOTS.mkdir(parents=True, exist_ok=True)
    path = PLOTS / "accuracy-by-step.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


if __name__ == "__main__":
    print(f"wrote {accuracy_by_step()}")
