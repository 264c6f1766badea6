"""Only the owner of a data folder may enter it or read its files."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.running.data_folder import open_privately, prepare_data_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_new_folder_and_its_missing_parents_are_closed_to_others(tmp_path: Path) -> None:
    before, folder = mode(tmp_path), tmp_path / "share" / "quickstudy"
    prepare_data_folder(folder)
    assert (mode(folder), mode(folder.parent), mode(tmp_path)) == (0o700, 0o700, before)


def test_an_existing_folder_and_its_files_are_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir" / "a.aof").write_text("a text")
    (other := folder / "notes").write_text("not of this program")
    (folder / "url").symlink_to(other)
    folder.chmod(0o755)
    prepare_data_folder(folder)
    assert [mode(path) for path in (folder, folder / "appendonlydir", folder / "appendonlydir" / "a.aof")] == [0o700, 0o700, 0o600]
    assert mode(other) == 0o644  # the folder may by mistake be one with other files


def test_a_new_file_is_closed_to_others(tmp_path: Path) -> None:
    with open_privately(tmp_path / "url", "w") as file:
        file.write("x")
    assert mode(tmp_path / "url") == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_an_open_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match="of user 12345 with mode 0755"):
        prepare_data_folder(folder)
    folder.chmod(0o700)
    prepare_data_folder(folder)
