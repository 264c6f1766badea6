"""The worker's settings."""

from pathlib import Path

import pytest

from metatrain.errors import BaseModelError
from worker.errors import SettingsError
from worker.ledger.encryption import PLAIN, new_key
from worker.settings import WorkerSettings, check_folders, read_settings


def test_a_settings_error_names_the_variable_and_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "soon")
    with pytest.raises(SettingsError, match=r"LEASE_SECONDS: .* got 'soon'"):
        read_settings(WorkerSettings)


def test_folders_that_do_not_exist_are_found_early(tmp_path: Path) -> None:
    check_folders(WorkerSettings(base_model=f"text,someone/on-the-hub,{tmp_path}", initializations_dir=tmp_path))
    with pytest.raises(BaseModelError, match=r"no folder at './nowhere'"):
        check_folders(WorkerSettings(base_model="text,./nowhere"))
    with pytest.raises(SettingsError, match="INITIALIZATIONS_DIR: expected a folder of initialization folders, got 'nowhere'"):
        check_folders(WorkerSettings(initializations_dir=Path("nowhere")))


def test_a_key_file_that_cannot_be_used_ends_the_start_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY_FILE", str(tmp_path / "keys"))
    with pytest.raises(SettingsError, match=r"^ENCRYPTION_KEY_FILE: expected a readable file of keys, got FileNotFoundError"):
        read_settings(WorkerSettings).cipher  # noqa: B018
    (tmp_path / "keys").write_text(new_key().line)
    assert len(read_settings(WorkerSettings).cipher.sealing_key) == 8
    monkeypatch.setenv("ENCRYPTION_KEY_FILE", "")
    assert read_settings(WorkerSettings).cipher is PLAIN
