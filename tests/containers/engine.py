"""Docker or podman: builds the images, starts the composition, and runs commands in its containers."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "quickstudy-check"
STARTED = ("broker", "cache", "service", "worker", "predictor", "proxy")
"""The containers that need no GPU. The predictor runs on the image of the service, without one."""
IMAGES = ("redis", "worker", "service", "proxy")


class NoEngine(Exception):
    """There is no engine that could start the composition; the message says what is missing."""


class Engine:
    """The engine of this machine, with the variables that the composition is started with."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Find Docker with its plugin compose, or podman with podman-compose.

        Raises NoEngine if there is neither.
        """
        self._environment = {**os.environ, **variables}
        if _succeeds("docker", "info") and _succeeds("docker", "compose", "version"):
            self.name, self._compose = "docker", ["docker", "compose", "--profile", "*"]
        elif shutil.which("podman-compose") and _succeeds("podman", "info"):
            self.name, self._compose = "podman", ["podman-compose"]
        else:
            raise NoEngine("neither a running Docker engine with its plugin compose, nor podman with podman-compose, was found")

    def build(self) -> None:
        """Build the images that `STARTED` needs. PROXY_BASE_IMAGE replaces the base image of the proxy."""
        for image in IMAGES:
            base = self._environment.get("PROXY_BASE_IMAGE") if image == "proxy" else None
            arguments = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
            if index := self._environment.get("TORCH_INDEX"):
                arguments += ["--build-arg", f"TORCH_INDEX={index}"]
            file = f"docker/{image}.Dockerfile"
            command = [self.name, "build", "--network=host", *arguments, "-f", file, "-t", f"quickstudy-{image}", "."]
            subprocess.run(command, cwd=ROOT, check=True)

    def up(self) -> None:
        """Start the containers of `STARTED`."""
        subprocess.run([self.name, "tag", "quickstudy-service", "quickstudy-predictor-gpu"], check=True)
        override: dict[str, Any] = {"services": {"predictor": {"deploy": {"resources": {"reservations": {"devices": []}}}}}}
        command = self._with_file(override) if self.name == "docker" else self._compose
        flags = ["--no-build"] if self.name == "docker" else []
        self._run([*command, "-p", PROJECT, "up", "-d", *flags, *STARTED])

    def down(self) -> None:
        """Stop and remove the containers and their volumes."""
        self._run([*self._compose, "-p", PROJECT, "down", "-v"], check=False)

    def container(self, service: str) -> str:
        """Return the name of the container of a service."""
        return f"{PROJECT}{'-' if self.name == 'docker' else '_'}{service}{'-' if self.name == 'docker' else '_'}1"

    def inspect(self, service: str) -> dict[str, Any]:
        """Return the description of a service's container."""
        return dict(json.loads(self._output([self.name, "inspect", self.container(service)]))[0])

    def execute(self, service: str, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Run a command in a service's container, and return its result."""
        return subprocess.run(
            [self.name, "exec", self.container(service), *command], capture_output=True, text=True, timeout=120, check=False
        )

    def logs(self, service: str) -> str:
        """Return what a service's container has written."""
        done = subprocess.run([self.name, "logs", self.container(service)], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def stop(self, service: str, seconds: int) -> int:
        """Stop a service's container. Kill it after so many seconds. Return its exit status."""
        self._output([self.name, "stop", "-t", str(seconds), self.container(service)])
        return int(self.inspect(service)["State"]["ExitCode"])

    def _with_file(self, override: dict[str, Any]) -> list[str]:
        path = Path(self._environment["SECRETS"]) / "without-gpu.yml"
        path.write_text(yaml.safe_dump(override).replace("devices: []", "devices: !reset []"))
        return [*self._compose, "-f", "docker-compose.yml", "-f", str(path)]

    def _run(self, command: Sequence[str], *, check: bool = True) -> None:
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")

    def _output(self, command: Sequence[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
