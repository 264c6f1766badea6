"""Read thousands of mutated files as the commands do, and count what comes of them.

Each case is repeatable: it depends only on the seed and its number. Writes benchmarks/results/fuzz-files.json, and exits with
status 1 if a case is a fault; the mutated files are then in runs/fuzz-files/faults.

    make fuzz-files
    make fuzz-files FUZZ_FLAGS='--count 2000 --seed 7 --kind csv'
"""

import sys
from collections import Counter
from pathlib import Path

import click
import torch
from tqdm import tqdm

from benchmarks.record import Row, write
from metatrain.models.loading import load_base
from tests.fuzz.cases import Outcome, run_cases
from tests.fuzz.targets import targets
from tests.tiny import save_tiny_model

FOLDER = Path("runs") / "fuzz-files"


@click.command()
@click.option("--count", type=click.IntRange(min=1), default=20_000, show_default=True, help="Number of mutated files.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--kind", "kinds", multiple=True, help="Only files of this kind; may be given more than once.")
def main(count: int, seed: int, kinds: tuple[str, ...]) -> None:
    """Fuzz everything that reads files."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    base_folder = save_tiny_model(FOLDER / "tiny")
    tiny = load_base(str(base_folder), precision="float32", device=torch.device("cpu"))
    chosen = [target for target in targets(FOLDER, tiny, base_folder) if not kinds or target.kind in kinds]
    if not chosen:
        raise click.UsageError(f"--kind: no such kind, got {', '.join(kinds)}")
    outcomes = list(tqdm(run_cases(chosen, FOLDER, count, seed), total=count, unit="file", mininterval=1))
    counted = Counter((outcome.kind, outcome.outcome) for outcome in outcomes)
    rows = [Row(kind, "quickstudy", outcome, number, "files") for (kind, outcome), number in sorted(counted.items())]
    for row in rows:
        click.echo(f"{row.case:<20} {row.metric:<9} {row.value:>6}")
    faults = [outcome for outcome in outcomes if outcome.outcome == "fault"]
    longest = max((outcome.message for outcome in outcomes if outcome.outcome == "refused"), key=len, default="")
    slowest = max(outcome.seconds for outcome in outcomes)
    click.echo(f"longest message: {len(longest)} characters; slowest file: {slowest:.1f} s; faults: {len(faults)}")
    for description, number in Counter(map(_described, faults)).most_common():
        first = next(fault.seed for fault in faults if _described(fault) == description)
        click.echo(f"{number:>5} × {description}, first in case {first}")
    if not kinds:
        path = write(
            "fuzz-files",
            rows,
            seed=seed,
            count=count,
            longest_message=len(longest),
            slowest_seconds=round(slowest, 2),
            faults=len(faults),
        )
        click.echo(f"wrote {path}")
    sys.exit(1 if faults else 0)


def _described(fault: Outcome) -> str:
    """Return a fault's file and exception, without what differs from case to case."""
    return f"{fault.file}: {fault.message.strip().splitlines()[-1].partition(':')[0][:100]}"


if __name__ == "__main__":
    main()
