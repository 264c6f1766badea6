"""The environment that docker-compose.yml passes to the service."""

import re
from pathlib import Path

import yaml

from service.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]


def test_every_limit_of_the_service_is_passed_on_with_its_default() -> None:
    environment = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["service"]["environment"]
    limits = {name: field.default for name, field in ServiceSettings.model_fields.items() if name.startswith("max_")}
    assert len(limits) > 10
    for name, default in limits.items():
        variable = name.upper()
        passed_on = re.fullmatch(rf"\$\{{{variable}:-(.*)\}}", environment[variable])
        assert passed_on is not None and float(passed_on[1]) == default, variable
    assert environment["REDIS_URL"] == "redis://broker:6379/0" and environment["ALLOW_WITHOUT_KEYS"] == "true"
