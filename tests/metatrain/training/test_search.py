"""The search for a delta and an inner loop, on the tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from metatrain.cli import main
from metatrain.errors import RecipeError
from metatrain.training.search import SearchSpace, draw_candidates, read_space, search

SEARCHES = Path(__file__).resolve().parents[3] / "metatrain" / "searches"


def space(tiny_folder: Path, **change: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": "tiny-search",
        "base": {"model": str(tiny_folder), "precision": "float32"},
        "delta": {"targets": [["query"], ["query", "value"]], "rank": [1, 2]},
        "inner": {"objective": [{"supervised_contrastive": 1}, {"cross_entropy": 1}], "head": ["prototypes", "linear"]},
        "rate": {"adam": [0.01], "sgd": [0.1]},
        "steps": [0, 2],
        "shots": [2],
        "ways": 3,
        "candidates": 4,
        "episodes": 2,
        "valid": [{"path": "starter"}],
    }
    return {**content, **change}


def test_the_better_half_continues_with_twice_the_episodes(tiny_folder: Path, tmp_path: Path) -> None:
    plan = SearchSpace.model_validate(space(tiny_folder))
    events: list[dict[str, Any]] = []
    results = search(plan, Path(), tmp_path, on_event=events.append)
    assert [e["rung"] for e in events] == [0, 0, 0, 0, 1, 1, 2]
    first = sorted((e for e in events if e["rung"] == 0), key=lambda e: -e["score"])
    assert {e["label"] for e in events if e["rung"] == 1} == {e["label"] for e in first[:2]}
    assert results[0]["rung"] == 2
    assert results[0]["score"] == max(results[0]["accuracy"]["2"].values())
    repeated: list[dict[str, Any]] = []
    before = (tmp_path / "search.json").stat().st_mtime_ns
    assert search(plan, Path(), tmp_path, on_event=repeated.append) == results
    assert repeated == events and (tmp_path / "search.json").stat().st_mtime_ns == before, "a candidate was scored twice"


def test_candidates_are_different_seeded_and_valid(tiny_folder: Path) -> None:
    plan = SearchSpace.model_validate(space(tiny_folder, candidates=100))
    drawn = draw_candidates(plan)
    # 2 targets x 2 ranks x 3 of the 4 objectives with heads (a linear head needs cross-entropy) x 2 optimizers
    assert len(drawn) == len({c.model_dump_json() for c in drawn}) == 24
    assert [c.label for c in drawn] == [c.label for c in draw_candidates(plan)]
    all_invalid = SearchSpace.model_validate(space(tiny_folder, inner={"objective": [{"leave_one_out": 1}], "head": ["linear"]}))
    with pytest.raises(RecipeError, match="no point of the search space is a valid inner loop: head: a linear"):
        draw_candidates(all_invalid)


@pytest.mark.parametrize("path", sorted(SEARCHES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_searches_are_valid(path: Path) -> None:
    assert len(draw_candidates(read_space(path))) == read_space(path).candidates


def test_the_command_searches_and_its_errors_are_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    path, runner = tmp_path / "space.yaml", CliRunner()
    path.write_text(yaml.safe_dump(space(tiny_folder, candidates=2)))
    result = runner.invoke(main, ["search", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and result.output.count("rung") == 3 and "best: " in result.output, result.output
    assert json.loads((tmp_path / "out" / "search.json").read_text())
    path.write_text(yaml.safe_dump(space(tiny_folder, stepz=[1])))
    result = runner.invoke(main, ["search", str(path)])
    assert result.exit_code == 1
    assert result.output == f"error: {path}: stepz: no such key; expected one of {', '.join(sorted(SearchSpace.model_fields))}\n"


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not JSON"), (b"[]", "expected the scores of a search"), (b"\xff", "not JSON")]
)
def test_a_damaged_file_of_scores_is_one_line(tiny_folder: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "search.json").write_bytes(content)
    with pytest.raises(RecipeError, match=rf"search\.json: {message}.*choose another --out folder"):
        search(SearchSpace.model_validate(space(tiny_folder)), Path(), tmp_path)


def test_a_space_of_too_many_points_is_refused(tiny_folder: Path) -> None:
    values = {name: list(range(300)) for name in ("alpha", "rank", "more")}
    with pytest.raises(RecipeError, match="expected a search space of at most 1,000,000 points, got 216,000,000"):
        draw_candidates(SearchSpace.model_validate(space(tiny_folder, delta=values)))
