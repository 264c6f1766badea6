"""The composition in docker-compose.yml: what every container gets, without starting one."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import ServiceSettings, predictor_address
from tests import settings_page
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ALL = ("broker", "cache", "service", "worker", "worker-gpu", "predictor", "proxy")
READS = {
    "service": set(ServiceSettings.model_fields) - settings_page.ONLY_WORKER,
    "predictor": set(ServiceSettings.model_fields) - settings_page.ONLY_WORKER,
    "worker": set(WorkerSettings.model_fields) - settings_page.ONLY_SERVICE,
    "worker-gpu": set(WorkerSettings.model_fields) - settings_page.ONLY_SERVICE,
}


def test_these_are_all_containers() -> None:
    assert set(SERVICES) == set(ALL)


@pytest.mark.parametrize("name", READS)
def test_every_setting_that_a_container_reads_is_passed_on(name: str) -> None:
    passed_on = SERVICES[name]["environment"]
    settings = {setting.upper() for setting in READS[name]}
    assert settings - set(passed_on) == set()
    assert set(passed_on) - settings == set(), "expected nothing that no process reads"
    fixed = {"REDIS_URL", "CACHE_URL", "REDIS_PASSWORD_FILE"}
    for setting in settings - fixed:  # no value: the variable of the same name, or the default of the process
        value = passed_on[setting]
        assert value is None or re.fullmatch(rf"\$\{{{setting}:-.+\}}", value), setting


def test_no_default_of_a_setting_is_repeated_with_another_value() -> None:
    defaults = {name.upper(): field.default for name, field in ServiceSettings.model_fields.items()}
    on_purpose = {"PRECISION", "ALLOW_WITHOUT_KEYS"}
    repeated = 0
    for name in ALL:
        for setting, value in SERVICES[name].get("environment", {}).items():
            default = re.fullmatch(r"\$\{\w+:-(.+)\}", value or "")
            if default is not None and setting in defaults and setting not in on_purpose:
                assert default[1] == str(defaults[setting]), setting
                repeated += 1
    assert repeated == 1  # MAX_BODY_BYTES of the proxy


@pytest.mark.parametrize("name", ALL)
def test_every_container_is_hardened(name: str) -> None:
    container = SERVICES[name]
    assert container["read_only"] is True and container["cap_drop"] == ["ALL"] and "cap_add" not in container
    assert container["security_opt"] == ["no-new-privileges:true"] and "privileged" not in container
    assert all(mount.startswith("/tmp:size=") for mount in container["tmpfs"]), "expected a bound, because it is memory"
    assert container["restart"] == "unless-stopped" and "stop_grace_period" in container
    text = (ROOT / container["build"]["dockerfile"]).read_text()
    assert re.findall(r"^USER (.+)$", text, re.M)[-1] in ("10001", "999:999"), "expected a user that is not root"


@pytest.mark.parametrize("name", ALL)
def test_every_container_has_limits_that_a_variable_sets(name: str) -> None:
    container, prefix = SERVICES[name], {"worker-gpu": "WORKER"}.get(name, name.upper())
    for limit, variable in (("mem_limit", "MEMORY_LIMIT"), ("cpus", "CPUS"), ("pids_limit", "PROCESSES")):
        assert re.fullmatch(rf"\$\{{{prefix}_{variable}:-[0-9]+g?\}}", str(container[limit])), limit


@pytest.mark.parametrize("name", ALL)
def test_every_container_has_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert set(check) == {"test", "interval", "timeout", "retries", "start_period"}
    assert isinstance(check["test"], str), "podman-compose changes a list in place, which containers may share"
    if (module := re.match(r"python -m ([\w.]+)", check["test"])) is not None:
        assert (ROOT / f"{module[1].replace('.', '/')}.py").is_file()


def test_passwords_are_in_secrets_alone() -> None:
    assert {name for name in ALL if "redis_password" in SERVICES[name].get("secrets", [])} == set(ALL) - {"proxy"}
    assert all(list(secret) == ["file"] for secret in COMPOSE["secrets"].values())
    text = (ROOT / "docker-compose.yml").read_text()
    assert "requirepass" not in text and not re.search(r"redis://[^\s]*@", text)
    for redis in ("broker", "cache"):
        assert "ports" not in SERVICES[redis] and "environment" not in SERVICES[redis]
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text()


def test_only_service_and_proxy_are_published_and_on_this_machine_alone() -> None:
    published = {name: SERVICES[name]["ports"] for name in ALL if "ports" in SERVICES[name]}
    assert published == {
        "service": ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"],
        "proxy": ["${TLS_BIND:-127.0.0.1}:${TLS_PORT:-8443}:8443"],
    }


def test_the_predictor_listens_on_a_socket_that_it_shares_with_the_service() -> None:
    predictor = SERVICES["predictor"]
    listens = predictor["command"][-1]
    assert predictor["profiles"] == ["gpu"] == SERVICES["worker-gpu"]["profiles"]
    assert predictor["healthcheck"]["test"].endswith(f" {listens}")
    folder = str(Path(str(predictor_address(listens))).parent)
    for name in ("service", "predictor"):
        assert f"sockets:{folder}" in SERVICES[name]["volumes"]
    assert f"{folder}\n" in (ROOT / "docker" / "service.Dockerfile").read_text()  # created for the user of the image


def test_workers_may_finish_their_jobs_before_they_are_killed() -> None:
    for name in ("worker", "worker-gpu"):
        grace = re.fullmatch(r"\$\{WORKER_STOP_GRACE:-(\d+)s\}", SERVICES[name]["stop_grace_period"])
        assert grace is not None and int(grace[1]) >= 3 * WorkerSettings.model_fields["drain_seconds"].default


def test_the_images_copy_only_what_the_build_context_has() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for dockerfile in (ROOT / "docker").glob("*.Dockerfile"):
        for sources in re.findall(r"^COPY (.+) \S+$", dockerfile.read_text(), re.M):
            for source in sources.split():
                assert any(source == one or source.startswith(f"{one}/") for one in allowed), source
                assert (ROOT / source).exists(), source


def test_the_proxy_takes_its_numbers_from_variables_and_no_address_from_clients() -> None:
    configuration = (ROOT / "docker" / "proxy.conf").read_text()
    entrypoint = (ROOT / "docker" / "proxy-entrypoint").read_text()
    known = dict(re.findall(r"\b([A-Z][A-Z_]+)=(\d+)\b", entrypoint))
    assert set(re.findall(r"@([A-Z_]+)@", configuration)) == {*known, "RESOLVER"}
    assert set(known) == set(SERVICES["proxy"]["environment"])
    assert int(known["MAX_BODY_BYTES"]) == ServiceSettings.model_fields["max_body_bytes"].default
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in configuration and "$proxy_add_x_forwarded_for" not in configuration


def test_the_proxy_fits_into_the_limits_of_the_service() -> None:
    """The proxy is one address for the service, unless FORWARDED_ALLOW_IPS names it."""
    entrypoint = (ROOT / "docker" / "proxy-entrypoint").read_text()
    (most,) = re.findall(r"PROXY_ALL_CONNECTIONS=(\d+)", entrypoint)
    assert int(most) < ServiceSettings.model_fields["max_connections_per_address"].default


def test_the_documented_times_to_stop_are_those_of_the_composition() -> None:
    times = [re.fullmatch(r"\$\{\w+:-(\d+s)\}", SERVICES[name]["stop_grace_period"]) for name in ("worker", "service", "predictor")]
    documented = ", ".join(found[1] for found in times if found is not None)
    assert f"the time from SIGTERM to SIGKILL: {documented}." in (ROOT / "docs" / "scale.md").read_text()


def test_a_password_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    command = ["make", "--silent", "--file", str(ROOT / "Makefile"), "secrets"]
    password = tmp_path / "docker" / "secrets" / "redis_password"
    broken = tmp_path / "bin" / "python3"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    environment = {**os.environ, "PATH": f"{broken.parent}:{os.environ['PATH']}"}
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode != 0
    assert not password.exists()
    broken.unlink()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert re.fullmatch(r"[0-9a-f]{64}\n", password.read_text()) and password.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in password.parent.iterdir()] == ["redis_password"]
