"""A fixed part of the file fuzzer: no traceback, no long message, no control character."""

from pathlib import Path

import pytest

from metatrain.models.base import Base
from tests.fuzz.cases import run_cases
from tests.fuzz.targets import targets

TABLES, RECIPES = ("csv", "tsv", "jsonl", "json"), ("recipe", "search space", "recipe of version 1", "split file")


def test_the_files_before_the_mutations_are_read(tiny: Base, tiny_folder: Path, tmp_path: Path) -> None:
    for target in targets(tmp_path, tiny, tiny_folder):
        for name, content in target.seeds.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        for name in target.seeds:
            for read in target.read:
                read(tmp_path / name)


@pytest.mark.parametrize("kind", (*TABLES, *RECIPES, "initialization", "safetensors", "base model"))
def test_a_mutated_file_is_read_or_refused_in_one_line(kind: str, tiny: Base, tiny_folder: Path, tmp_path: Path) -> None:
    chosen = [target for target in targets(tmp_path, tiny, tiny_folder) if target.kind == kind]
    outcomes = list(run_cases(chosen, tmp_path, 60, seed=1))
    faults = [outcome for outcome in outcomes if outcome.outcome == "fault"]
    assert not faults, "\n".join(f"{fault.seed} {fault.file}: {fault.message[-1500:]}" for fault in faults[:3])
    assert {outcome.outcome for outcome in outcomes} == {"accepted", "refused"}
