"""The settings of a worker."""

import pytest

from worker.errors import SettingsError
from worker.settings import WorkerSettings, read_settings


def test_a_settings_error_names_the_variable_and_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "soon")
    with pytest.raises(SettingsError, match=r"LEASE_SECONDS: .* got 'soon'"):
        read_settings(WorkerSettings)
