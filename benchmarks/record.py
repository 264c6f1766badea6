"""The format of benchmark results.

A result is {"machine", "date", "commit", "rows": [{"case", "system", "metric", "value", "unit"}, …]}.
"""

import datetime
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from metatrain.training.evaluate import paired_interval

RESULTS = Path(__file__).with_name("results")
RUNS = Path(__file__).resolve().parents[1] / "runs"


@dataclass(frozen=True)
class Row:
    """One measured value: a metric of one system in one case."""

    case: str
    system: str
    metric: str
    value: float
    unit: str


def difference_rows(case: str, system: str, other: str, scores: Sequence[float], other_scores: Sequence[float]) -> list[Row]:
    """Return the mean of `system` minus `other` on the same episodes, and half its 95 % interval, as rows."""
    difference, half = paired_interval(scores, other_scores)
    metric = f"over {other}"
    return [Row(case, system, metric, difference, "share"), Row(case, system, f"{metric}, 95 % interval, half", half, "share")]


def write(name: str, rows: list[Row], **about: Any) -> Path:
    """Write the results of `make bench-NAME` and return the path of the file.

    `about`: further entries for the top level of the JSON document.
    """
    document = {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        **about,
        "rows": [asdict(row) for row in rows],
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def machine() -> str:
    """Describe this machine: processor, cores, and the version and threads of torch."""
    return f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"


class Progress:
    """The stored values of a long benchmark's finished parts, so that it can be stopped and resumed.

    `kept`: True stores them beside the results, under version control, and False in `runs/`. Use True for parts that take too long
    for one run and do not depend on the machine.
    """

    def __init__(self, name: str, *, kept: bool = False) -> None:
        self._path = RESULTS / "parts" / f"{name}.json" if kept else RUNS / f"bench-{name}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._done: dict[str, Any] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def get(self, key: str) -> Any:
        """Return the value of a part, or None if the part is not finished."""
        return self._done.get(key)

    def put(self, key: str, value: Any) -> None:
        """Store the value of a finished part. Values that other processes have stored meanwhile are kept."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # other processes may share the work
            if self._path.is_file():
                self._done |= json.loads(self._path.read_text())
            self._done[key] = value
            temporary = self._path.with_suffix(".new")
            lines = [f"{json.dumps(key)}:{json.dumps(self._done[key], separators=(',', ':'))}" for key in sorted(self._done)]
            temporary.write_text("{" + ",\n".join(lines) + "}\n")
            temporary.replace(self._path)
        finally:
            os.close(folder)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
