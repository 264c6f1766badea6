"""An upgrade from a released commit changes numbers by rounding alone and loses no data.

Both commits run on this machine. Their results are compared up to rounding, because a version may compute the same sums in another
order: since rows are packed, products have other shapes. Data that are kept are compared exactly, so a digest on record stays.
"""

import json
import math
import runpy
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import ARCHITECTURES, save_tiny_model
from tests.upgrade.answers import Answers, make_secret_folder, record, record_again
from tests.upgrade.checkout import ROOT, CommitUnavailable, checkout, run_script
from tests.upgrade.datafolder import make_data_folder, observe
from tests.upgrade.services import served

COMMITS = ("cdc3a26",)
"""Released commits to upgrade from; each has a module `api_COMMIT.py`."""
ADDED = frozenset(
    {"kind", "base_model", "replaced_by", "label_words_used", "label_words_gain", "last_used_at", "streams", "bodies_bytes"}
)
"""Fields of answers that were added after the oldest of these commits."""
PREDICTED, ADAPTED = 1e-5, 1e-3
"""Largest differences of two numbers that count as rounding, whatever their size.

The second limit is for adapters that are computed again: the steps of Adam magnify rounding errors.
"""
COMPUTED = ("evicted", "waiting")
"""The adapters of the data folder that the upgraded service computes, the first one for the second time."""
ROUNDING, CENTRAL_ROUNDING = 1e-4, 1e-2
"""Largest relative differences that `check_close` accepts as rounding errors.

The second limit is for gradients from central differences, which magnify rounding errors.
"""


@pytest.fixture(scope="session", params=COMMITS)
def released(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """Check out a released commit, and yield its name and the folder with its files."""
    try:
        with checkout(request.param) as code:
            yield request.param, code
    except CommitUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save tiny base models of all architectures, and return their folder."""
    folder = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        save_tiny_model(folder / architecture, architecture=architecture)
    return folder


@pytest.fixture(scope="session")
def trajectories(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Record the inner loops and meta-gradients of this commit."""
    return record_trajectories("current", ROOT, models, tmp_path_factory.mktemp("current"))


@pytest.fixture(scope="session")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a data folder that contains only the secret key for computing adapter ids."""
    folder = tmp_path_factory.mktemp("secret") / "data"
    make_secret_folder(folder)
    return folder


@pytest.fixture(scope="session")
def answers(secret: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Record the answers of this commit's service."""
    with served(ROOT, copied(secret, tmp_path_factory)) as url:
        return record(url)


def record_trajectories(api: str, code: Path, models: Path, folder: Path) -> Mapping[str, Any]:
    """Record the inner loops and meta-gradients of the code in `code`. Return {case: tensors}."""
    run_script("trajectories.py", api, str(models), str(folder / "cases.json"), code=code)
    recorded: dict[str, Any] = json.loads((folder / "cases.json").read_text())
    assert recorded["code"] == str(code), f"expected the code in {code} on the module path, got {recorded['code']}"
    return dict(recorded["cases"])


def copied(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(data, tmp_path_factory.mktemp("copy") / "data"))


def first_difference(old: Any, new: Any, limit: float = PREDICTED, path: str = "") -> str | None:
    """Return the place and both values of the first difference between two recordings, or None.

    Numbers may differ by `limit`. Fields in `ADDED` may be missing from `old`.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        new = {key: value for key, value in new.items() if key in old or key not in ADDED}
        places: Iterator[tuple[str, Any, Any]] = ((k, old.get(k, "absent"), new.get(k, "absent")) for k in {**old, **new})
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        places = ((str(i), left, right) for i, (left, right) in enumerate(zip(old, new, strict=True)))
    elif isinstance(old, float) and isinstance(new, float):
        return None if math.isclose(old, new, rel_tol=0, abs_tol=limit) else f"{path.lstrip('/')} was {old} and is {new}"
    else:
        return None if old == new else f"{path.lstrip('/')}\n  released: {str(old)[:400]}\n  here:     {str(new)[:400]}"
    differences = (first_difference(left, right, limit, f"{path}/{key}") for key, left, right in places)
    return next((difference for difference in differences if difference is not None), None)


def check_close(case: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Fail unless two recordings of a meta-gradient agree up to rounding.

    Both must contain the same tensor names. Small tensors are compared number by number, larger tensors only by their norms.
    """
    assert old.keys() == new.keys(), case
    tolerance = CENTRAL_ROUNDING if "central" in case else ROUNDING
    for name, released in old.items():
        for left, right in zip(_numbers(released), _numbers(new[name]), strict=True):
            assert math.isclose(left, right, rel_tol=tolerance, abs_tol=PREDICTED), f"{case}: {name} was {left} and is {right}"


def _numbers(recorded: Any) -> list[float]:
    return [float.fromhex(number) for number in ([recorded["norm"]] if isinstance(recorded, Mapping) else recorded)]


def without_digests(recorded: Any) -> Any:
    """Return a recording without the digests of weights, which change with rounding."""
    if isinstance(recorded, Mapping):
        return {key: without_digests(value) for key, value in recorded.items() if key != "digest"}
    return [without_digests(value) for value in recorded] if isinstance(recorded, list) else recorded


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], limit: float = PREDICTED) -> None:
    """Fail if two recordings differ. Report the first difference of each differing case."""
    found = [first_difference(old.get(key), new.get(key), limit, key) for key in {**old, **new}]
    if differing := [difference for difference in found if difference is not None]:
        pytest.fail(f"{len(differing)} of {len(found)} differ:\n" + "\n".join(differing), pytrace=False)


def split_computed(seen: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split what `observe` returns into what was read from the folder, and what was computed anew.

    The second part has the adapters of `COMPUTED`, and is without the digests of weights.
    """
    views = ("before", "described", "after")
    kept = {**seen, **{view: {name: row for name, row in seen[view].items() if name not in COMPUTED} for view in views}}
    computed = {view: {name: row for name, row in seen[view].items() if name in COMPUTED} for view in views}
    return kept, without_digests(computed)


@pytest.mark.long
def test_inner_loops_and_meta_gradients_are_the_same(
    released: tuple[str, Path], models: Path, trajectories: Mapping[str, Any], tmp_path: Path
) -> None:
    commit, code = released
    old = record_trajectories(commit, code, models, tmp_path)
    assert old.keys() == trajectories.keys()
    for name in old:
        check_close(name, old[name], trajectories[name])


@pytest.mark.long
def test_a_service_computes_the_same_adapters_and_answers(
    released: tuple[str, Path], secret: Path, answers: Answers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compare answers computed from scratch, read back from the released folder, and recomputed in it."""
    data = copied(secret, tmp_path_factory)
    with served(released[1], data) as url:
        before = record(url)
    check_same(without_digests(before), without_digests(answers), ADAPTED)
    with served(ROOT, copied(data, tmp_path_factory)) as url:
        kept, again = record_again(url)
    check_same(before, kept)
    check_same(without_digests(before), without_digests(again), ADAPTED)


@pytest.mark.long
def test_a_data_folder_is_served_unchanged(released: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("released") / "data"
    content = make_data_folder(released[1], data)
    new = observe(ROOT, copied(data, tmp_path_factory), content)
    (old_kept, old_computed), (kept, computed) = map(
        split_computed, (observe(released[1], copied(data, tmp_path_factory), content), new)
    )
    check_same(old_kept, kept)
    check_same(old_computed, computed, ADAPTED)
    shown = {
        name: (view["digest"], view["predictions"])
        for name, view in content.described.items()
        if name not in ("foreign", *COMPUTED)
    }
    check_same(shown, {name: (view["digest"], view["predictions"]) for name, view in kept["described"].items()})
    assert new["waiting"] == "ready"
    assert {name: view["status"] for name, view in new["before"].items() if view["status"] != "ready"} == {
        "expired": "expired",
        "evicted": "evicted",
    }
    assert {name for name, view in new["after"].items() if view["status"] != "ready"} == {"expired"}
    assert new["after"]["pinned"]["pinned"] and new["after"]["pinned"]["expires_at"] is None
    assert [(row["alias"], row["adapter_id"]) for row in new["aliases"]["aliases"]] == [
        ("desk.production", content.adapters["aliased"])
    ]
    assert {name: set(statuses.values()) == {401} for name, statuses in new["access"].items()} == {
        "default": False,
        "acme": False,
        "reader": False,
        "revoked": True,
        "expired": True,
        "none": True,
        "unknown": True,
    }


def test_the_recorder_runs_on_this_commit(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a few cases, so that the test fails if the internal API changes but `api_current.py` does not."""
    script, out = Path(__file__).parent / "trajectories.py", tmp_path / "cases.json"
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "current", str(models), str(out), "--only", "rates by step"])
    runpy.run_path(str(script), run_name="__main__")
    recorded = json.loads(out.read_text())
    assert recorded["code"] == str(ROOT)
    assert [name.split(" | ")[0] for name in recorded["cases"]] == ["start", "serve", "first", "second"] * 2


def test_a_missing_commit_is_reported() -> None:
    with pytest.raises(CommitUnavailable, match="commit 0123456789 is not in"), checkout("0123456789"):
        pass


def test_a_difference_is_shown_with_its_place() -> None:
    old, new = {"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}
    assert first_difference(old, old) is None
    assert first_difference(old, new) == "a/b/1\n  released: 2\n  here:     3"
    assert first_difference({}, new) == "a\n  released: absent\n  here:     {'b': [1, 3]}"
