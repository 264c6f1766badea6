"""An upgrade from a released commit changes no number and loses nothing: both are run here, on this machine, and compared exactly.

Results differ in their last bits between processors and builds of torch, so nothing is compared with a file.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import ARCHITECTURES, save_tiny_model
from tests.upgrade.answers import Answers, record, record_again, secret_alone
from tests.upgrade.checkout import ROOT, CommitUnavailable, checkout, run_script
from tests.upgrade.datafolder import leave, observe
from tests.upgrade.services import served

COMMITS = ("cdc3a26",)
"""Released commits; each has its module `api_COMMIT.py`."""
ADDED = frozenset({"kind", "base_model"})
"""Fields of answers that came after the oldest of these commits."""


@pytest.fixture(scope="session", params=COMMITS)
def released(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A released commit and a folder with its files."""
    try:
        with checkout(request.param) as code:
            yield request.param, code
    except CommitUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny base models."""
    folder = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        save_tiny_model(folder / architecture, architecture=architecture)
    return folder


@pytest.fixture(scope="session")
def trajectories(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """This commit's inner loops and meta-gradients."""
    return recorded_trajectories("current", ROOT, models, tmp_path_factory.mktemp("current"))


@pytest.fixture(scope="session")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the secret of adapter ids alone."""
    folder = tmp_path_factory.mktemp("secret") / "data"
    secret_alone(folder)
    return folder


@pytest.fixture(scope="session")
def answers(secret: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What this commit's service answers."""
    with served(ROOT, copied(secret, tmp_path_factory)) as url:
        return record(url)


def recorded_trajectories(api: str, code: Path, models: Path, folder: Path, only: str = "") -> Mapping[str, Any]:
    """Run the recorder of inner loops with the code in `code`."""
    run_script("trajectories.py", api, str(models), str(folder / "cases.json"), "--only", only, code=code)
    recorded: dict[str, Any] = json.loads((folder / "cases.json").read_text())
    assert recorded["code"] == str(code), "another code than the one to record was on the module path"
    return dict(recorded["cases"])


def copied(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(data, tmp_path_factory.mktemp("copy") / "data"))


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Return where two recordings differ first, and both values there; None where they are equal. Answers of this commit may have
    the fields of `ADDED`, which those of the released one lack."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        new = {key: value for key, value in new.items() if key in old or key not in ADDED}
        places: Iterator[tuple[str, Any, Any]] = ((k, old.get(k, "absent"), new.get(k, "absent")) for k in {**old, **new})
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        places = ((str(i), own, other) for i, (own, other) in enumerate(zip(old, new, strict=True)))
    else:
        return None if old == new else f"{path.lstrip('/')}\n  released: {str(old)[:400]}\n  here:     {str(new)[:400]}"
    found = (first_difference(own, other, f"{path}/{key}") for key, own, other in places)
    return next((text for text in found if text is not None), None)


def check_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Fail with the number of differing cases and the first difference."""
    differing = [key for key in {**old, **new} if first_difference(old.get(key), new.get(key)) is not None]
    if differing:
        pytest.fail(f"{len(differing)} of {len({**old, **new})} differ; the first: {first_difference(old, new)}", pytrace=False)


@pytest.mark.long
def test_inner_loops_and_meta_gradients_are_the_same(
    released: tuple[str, Path], models: Path, trajectories: Mapping[str, Any], tmp_path: Path
) -> None:
    commit, code = released
    check_same(recorded_trajectories(commit, code, models, tmp_path), trajectories)


@pytest.mark.long
def test_a_service_computes_the_same_adapters_and_answers(
    released: tuple[str, Path], secret: Path, answers: Answers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From nothing; read back from the released commit's data folder; and computed again there after each was deleted."""
    data = copied(secret, tmp_path_factory)
    with served(released[1], data) as url:
        before = record(url)
    check_same(before, answers)
    with served(ROOT, copied(data, tmp_path_factory)) as url:
        kept, again = record_again(url)
    check_same(before, kept)
    check_same(before, again)


@pytest.mark.long
def test_a_data_folder_is_served_on(released: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("left") / "data"
    left = leave(released[1], data)
    new = observe(ROOT, copied(data, tmp_path_factory), left)
    check_same(observe(released[1], copied(data, tmp_path_factory), left), new)
    check_same(
        {name: (said["digest"], said["predictions"]) for name, said in left.described.items() if name != "foreign"},
        {name: (said["digest"], said["predictions"]) for name, said in new["described"].items() if name != "waiting"},
    )
    assert new["waiting"] == "ready"
    assert {name: view["status"] for name, view in new["before"].items() if view["status"] != "ready"} == {
        "expired": "expired",
        "evicted": "evicted",
    }
    assert {name for name, view in new["after"].items() if view["status"] != "ready"} == {"expired"}
    assert new["after"]["pinned"]["pinned"] and new["after"]["pinned"]["expires_at"] is None
    assert [(row["alias"], row["adapter_id"]) for row in new["aliases"]["aliases"]] == [
        ("desk.production", left.adapters["aliased"])
    ]
    assert {name: set(door.values()) == {401} for name, door in new["doors"].items()} == {
        "default": False,
        "acme": False,
        "reader": False,
        "revoked": True,
        "expired": True,
        "none": True,
        "unknown": True,
    }


def test_the_recorder_runs_on_this_commit(models: Path, tmp_path: Path) -> None:
    """So that whoever changes the internal API changes `api_current.py` along."""
    found = recorded_trajectories("current", ROOT, models, tmp_path, only="rates by step")
    assert [name.split(" | ")[0] for name in found] == ["start", "serve", "first", "second"] * 2


def test_a_commit_that_is_not_here_is_said_to_be_missing() -> None:
    with pytest.raises(CommitUnavailable, match="commit 0123456789 is not in"), checkout("0123456789"):
        pass


def test_a_difference_is_shown_by_its_place() -> None:
    old, new = {"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}
    assert first_difference(old, old) is None
    assert first_difference(old, new) == "a/b/1\n  released: 2\n  here:     3"
    assert first_difference({}, new) == "a\n  released: absent\n  here:     {'b': [1, 3]}"
