"""The worker's settings."""

from pathlib import Path

import pytest

from metatrain.errors import BaseModelError
from worker.errors import SettingsError
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
