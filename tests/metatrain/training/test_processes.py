"""Training with two processes over gloo, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from metatrain.artifacts.initialization import load_initialization
from metatrain.models.loading import load_base
from metatrain.training.history import read_history
from metatrain.training.processes import Processes
from metatrain.training.recipe import Recipe
from metatrain.training.run import train
from tests.metatrain.training.plans import content


def test_two_processes_train_as_one_process_does(tiny_folder: Path, tmp_path: Path) -> None:
    """Train with three tasks per step, so that the processes get unequal shares.

    One process begins the run, two processes resume it and stop, and one process finishes it.
    """
    plan = content(
        tiny_folder, outer={"steps": 6, "tasks": 3, "warmup": 2}, validation={"every": 3, "episodes": 2, "ways": 3, "shots": [1]}
    )
    recipe, out = Recipe.model_validate(plan), tmp_path / "two"
    alone = train(recipe, Path(), tmp_path / "alone")
    train(recipe, Path(), out, max_steps=2)
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "localhost:0", "-m", "metatrain.cli", "train", str(file), "--out", str(out), "--max-steps", "5"]
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}{os.pathsep}{root / 'client'}"}
    done = subprocess.run(torchrun, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert max(event["step"] for event in read_history(out)) == 5
    train(recipe, Path(), out)
    together = load_initialization(out / "tiny", load_base(str(tiny_folder), precision="float32"))
    for name, leaf in alone.theta.items():
        torch.testing.assert_close(together.theta[name], leaf, rtol=1e-4, atol=1e-6)
    histories = [read_history(tmp_path / name) for name in ("alone", "two")]
    for one, two in zip(*histories, strict=True):
        assert one["event"] == two["event"] and one["step"] == two["step"]
        if one["event"] == "validation":  # at step 3, each process scored half of the episodes
            torch.testing.assert_close(two["by_shots"], one["by_shots"], rtol=0, atol=0.05)
        if one["event"] == "step":
            torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(two["support_loss"], one["support_loss"], rtol=1e-4, atol=1e-5)


def test_every_task_belongs_to_exactly_one_process() -> None:
    for tasks, count in ((3, 2), (8, 3), (1, 4)):
        shares = [Processes(rank, count).share(tasks) for rank in range(count)]
        assert [i for share in shares for i in share] == list(range(tasks))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
