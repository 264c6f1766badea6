"""Start the composition and check it: hardening, health, secrets, predictions, refusals of the proxy.

    python -m tests.containers.check [--no-build]

Prints a table. Exits with 1 if a check fails, and with 2 if there is no engine.
"""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.containers import proxy
from tests.containers.engine import ROOT, STARTED, Engine, NoEngine

_MAX_BODY_BYTES, _PROXY_SECONDS, _CONNECTIONS, _REQUESTS = 200_000, 2, 20, 100
_PORTS = {"PORT": "8123", "TLS_PORT": "8453"}
_READY_SECONDS = 240
_SUPPORT = [
    {"input": "where is my parcel", "label": "delivery"},
    {"input": "when does the package arrive", "label": "delivery"},
    {"input": "i forgot my password", "label": "login"},
    {"input": "my account is locked", "label": "login"},
]


@dataclass
class Table:
    """The results of the checks: what was checked, of which container, and what was found."""

    rows: list[tuple[str, str, bool, str]] = field(default_factory=list)

    def add(self, container: str, check: str, passed: bool, found: object = "") -> None:
        """Add a result, and print it."""
        row = (container, check, passed, str(found).strip().replace("\n", " ")[:120])
        self.rows.append(row)
        print(f"{'ok  ' if passed else 'FAIL'}  {row[0]:<10}  {row[1]:<58}  {row[3]}", flush=True)

    @property
    def failed(self) -> list[str]:
        return [f"{container}: {check}: {found}" for container, check, passed, found in self.rows if not passed]


@contextmanager
def _secret_files() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        (path / "redis_password").write_text(secrets.token_hex(32) + "\n")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        files = ["-keyout", str(path / "tls_key"), "-out", str(path / "tls_certificate")]
        subprocess.run([*command, *names, *files], capture_output=True, check=True)
        for file in path.iterdir():
            file.chmod(0o644)
        yield path


def check(*, build: bool) -> Table:
    """Run all checks and return their results. Raises NoEngine if there is no engine."""
    with _secret_files() as folder:
        variables = {
            **_PORTS,
            "SECRETS": str(folder),
            "MAX_BODY_BYTES": str(_MAX_BODY_BYTES),
            "PROXY_SECONDS": str(_PROXY_SECONDS),
            "PROXY_CONNECTIONS": str(_CONNECTIONS),
            "PROXY_REQUESTS_A_SECOND": str(_REQUESTS),
            "PREDICTOR_URL": "unix:///run/quickstudy/predictor.sock",
            "FORWARDED_ALLOW_IPS": "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16",
            "WORKER_CPUS": "1.5",
            "WORKER_MEMORY_LIMIT": "3g",
            "LOG_LEVEL": "DEBUG",
            "ALLOW_WITHOUT_KEYS": "true",
        }
        engine, table = Engine(variables), Table()
        engine.down()
        if build:
            engine.build()
        try:
            engine.up()
            _run_checks(engine, table, folder)
        finally:
            if table.failed or not table.rows:
                for service in STARTED:
                    print(f"--- last lines of {service}\n" + "\n".join(engine.logs(service).splitlines()[-15:]))
            engine.down()
    return table


def _run_checks(engine: Engine, table: Table, folder: Path) -> None:
    client = httpx.Client(base_url=f"https://localhost:{_PORTS['TLS_PORT']}", verify=str(folder / "tls_certificate"), timeout=60)
    with client:
        table.add("all", f"ready within {_READY_SECONDS} s, through the proxy", *_wait_until_ready(client))
        for service in STARTED:
            _check_hardening(engine, table, service)
            _check_limits(engine, table, service)
            _check_health(engine, table, service)
        _check_use(engine, table, client)
        proxy.check(
            table, client, folder / "tls_certificate", int(_PORTS["TLS_PORT"]), _MAX_BODY_BYTES, _PROXY_SECONDS, _CONNECTIONS
        )
        _check_secrets(engine, table, (folder / "redis_password").read_text().strip())
        for service in ("worker", "predictor", "service", "broker", "cache"):
            began = time.monotonic()
            status = engine.stop(service, 60)
            seconds = time.monotonic() - began
            table.add(
                service, "stops by itself on SIGTERM", status in (0, 143) and seconds < 55, f"status {status}, {seconds:.1f} s"
            )


def _wait_until_ready(client: httpx.Client) -> tuple[bool, str]:
    began, last = time.monotonic(), ""
    while time.monotonic() < began + _READY_SECONDS:
        try:
            answer = client.get("/readyz")
            if answer.status_code == 200:
                return True, f"{time.monotonic() - began:.0f} s"
            last = answer.text
        except httpx.TransportError as error:
            last = type(error).__name__
        time.sleep(1)
    return False, last


def _check_hardening(engine: Engine, table: Table, service: str) -> None:
    described = engine.inspect(service)
    table.add(service, "read-only root", bool(described["HostConfig"]["ReadonlyRootfs"]))
    written = engine.execute(service, ["sh", "-c", "touch /etc/written /opt/written /home/written"])
    table.add(service, "writing outside its volumes fails", written.returncode != 0, written.stderr.splitlines()[-1:])
    lines = engine.execute(service, ["cat", "/proc/1/status"]).stdout.splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    table.add(service, "no capabilities", int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["CapBnd"])
    table.add(service, "no new privileges", status["NoNewPrivs"] == "1")
    table.add(service, "not root", "0" not in status["Uid"].split(), status["Uid"].split()[0])
    table.add(service, "resident memory (for information)", True, status["VmRSS"])


def _check_limits(engine: Engine, table: Table, service: str) -> None:
    host = engine.inspect(service)["HostConfig"]
    memory, cpus, processes = int(host["Memory"]), int(host["NanoCpus"]) / 1e9, int(host["PidsLimit"] or 0)
    expected = {"worker": (3 * 2**30, 1.5)}.get(service)
    table.add(service, "limit of memory", memory == expected[0] if expected else memory > 0, f"{memory / 2**30:g} GiB")
    unlimited = service in ("service", "predictor")  # all cores, unless SERVICE_CPUS or PREDICTOR_CPUS is set
    found = f"{cpus:g} CPUs, {host['CpuShares']} shares"
    table.add(service, "limit of CPU", cpus == expected[1] if expected else unlimited or cpus > 0, found)
    table.add(service, "weight of CPU", int(host["CpuShares"]) in (512, 1024, 2048), host["CpuShares"])
    # podman-compose 1.0.3 does not pass `pids_limit` on; podman then sets 2048.
    table.add(service, "limit of processes", 0 < processes <= 2048, processes)


def _check_health(engine: Engine, table: Table, service: str) -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    command = compose["services"][service]["healthcheck"]["test"]
    began = time.monotonic()
    done = engine.execute(service, ["sh", "-c", command])
    found = f"status {done.returncode}, {time.monotonic() - began:.1f} s {done.stderr}"
    table.add(service, "health check succeeds", done.returncode == 0, found)
    table.add(service, "health check is declared", bool(engine.inspect(service)["Config"].get("Healthcheck")))


def _check_use(engine: Engine, table: Table, client: httpx.Client) -> None:
    made = engine.execute("service", ["quickstudy", "keys", "create", "--tenant", "acme", "--name", "check"])
    words = made.stdout.split()
    key = next((word for word in words if word.startswith("qs")), words[-1] if words else "")
    table.add("service", "`quickstudy keys create` in the container", made.returncode == 0, made.stderr)
    client.headers["Authorization"] = f"Bearer {key}"
    time.sleep(1.5)  # a key counts within a second
    without = client.get("/adapters", headers={"Authorization": ""})
    table.add("proxy", "without a key: 401", without.status_code == 401, without.status_code)
    accepted = client.post("/adapt", json={"support": _SUPPORT})
    adapter = accepted.json().get("adapter_id", "")
    table.add("proxy", "adapt: 202", accepted.status_code == 202, accepted.text[:100])
    table.add("proxy", "the event stream ends with `ready`", *_stream(client, adapter))
    answer = client.post("/predict", json={"adapter_id": adapter, "inputs": ["the password does not work"]})
    labels = [prediction["label"] for prediction in answer.json().get("predictions", [])]
    table.add("proxy", "predict, by the separate predictor", labels == ["login"], answer.text[:100])


def _stream(client: httpx.Client, adapter: str) -> tuple[bool, str]:
    last = ""
    with client.stream("GET", f"/adapters/{adapter}/events", timeout=60) as events:
        for line in events.iter_lines():
            last = line if line.startswith(("event:", "data:")) else last
            if "ready" in line:
                return True, line
    return False, last


def _check_secrets(engine: Engine, table: Table, password: str) -> None:
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    table.add("all", "password in no list of processes", password not in listed)
    for service in STARTED:
        table.add(service, "password not in its description", password not in str(engine.inspect(service)))
        logs = engine.logs(service)
        table.add(service, "password not in its log", password not in logs, f"{len(logs)} characters")
        table.add(service, "inputs not in its log", not any(example["input"] in logs for example in _SUPPORT))
    for service in ("broker", "cache"):
        ping = engine.execute(service, ["redis-cli", "ping"])
        table.add(service, "refuses without the password", "NOAUTH" in ping.stdout + ping.stderr, ping.stdout)


def main() -> None:
    try:
        table = check(build="--no-build" not in sys.argv[1:])
    except NoEngine as error:
        print(f"NOT CHECKED: {error}")
        sys.exit(2)
    print(f"\n{len(table.rows)} checks, {len(table.failed)} failed")
    sys.exit(1 if table.failed else 0)


if __name__ == "__main__":
    main()
