"""A small synchronous client. Needs httpx alone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx


class QuickstudyError(Exception):
    """The service refused or failed; `problem` is its RFC 9457 document, `status` the HTTP status."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status, self.problem = status, problem


@dataclass(frozen=True)
class Prediction:
    label: str
    probabilities: dict[str, float]


class Client:
    """`with Client("http://localhost:8000") as quickstudy: …`"""

    def __init__(self, url: str, *, timeout: float = 90.0) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def adapt(
        self,
        support: Sequence[tuple[str, str]],
        *,
        initialization: str = "default",
        steps: int | None = None,
        seed: int = 0,
        label_words: bool = False,
        ttl_seconds: int | None = None,
        wait: float = 30.0,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> str:
        """Learn from (input, label) pairs and return the adapter's id once it is ready. `label_words`: each label's own words are
        one more example of it.

        With `on_progress`, polls and reports the adapter's state; without, one request waits. Raises QuickstudyError where the
        request is refused, the job fails, or it is not ready after `wait` seconds, and httpx errors where nobody answers.
        """
        body: dict[str, Any] = {
            "support": [{"input": text, "label": label} for text, label in support],
            "initialization": initialization,
            "options": {"steps": steps, "seed": seed},
        }
        if label_words:
            body["options"]["label_words"] = True
        if ttl_seconds is not None:
            body["ttl_seconds"] = ttl_seconds
        deadline = time.monotonic() + wait
        headers = {"Prefer": f"wait={0 if on_progress else wait:g}"}
        answer = self._send("POST", "/adapt", json=body, headers=headers)
        identity = str(answer["adapter_id"])
        if answer["status"] == "ready" and not on_progress:
            return identity
        while True:  # the service itself waits at most a minute or so
            state = self.adapter(identity)
            if on_progress:
                on_progress(state)
            if state["status"] == "ready":
                return identity
            if state["status"] not in ("queued", "running"):
                raise QuickstudyError(409, {"detail": state["error"] or f"adapter {identity} is {state['status']}"})
            if time.monotonic() > deadline:
                raise QuickstudyError(409, {"detail": f"adapter {identity} is still {state['status']} after {wait:g} s"})
            time.sleep(0.05)

    def predict(self, adapter_id: str, inputs: Sequence[str]) -> list[Prediction]:
        """A label and the probability of every label, for each input in order."""
        answer = self._send("POST", "/predict", json={"adapter_id": adapter_id, "inputs": list(inputs)})
        return [Prediction(row["label"], row["probabilities"]) for row in answer["predictions"]]

    def adapter(self, adapter_id: str) -> dict[str, Any]:
        return self._send("GET", f"/adapters/{adapter_id}")

    def delete(self, adapter_id: str) -> None:
        self._send("DELETE", f"/adapters/{adapter_id}")

    def initializations(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self._send("GET", "/initializations")["initializations"]
        return listed

    def ready(self) -> bool:
        """Whether the service answers and has all it needs."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _send(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        response = self._http.request(method, path, **request)
        if response.is_success:
            return dict(response.json()) if response.content else {}
        try:
            problem = dict(response.json())
        except ValueError:
            problem = {"detail": response.text[:200]}
        raise QuickstudyError(response.status_code, problem)
