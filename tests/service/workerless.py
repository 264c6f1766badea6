"""A service without a worker: each job stays queued until the test ends it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from service.http.app import create_app
from service.http.state import ServiceState
from service.running.binding import bind
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from worker.runtime import Resident

BODY: dict[str, Any] = {
    "support": [{"input": "close my card", "label": "close"}, {"input": "order a pizza", "label": "order"}],
    "initialization": "lora-from-zero",
    "options": {"steps": 0},
}
LABELS = ("close", "open", "order", "cancel", "book")
"""Labels that are words of the tiny base model, so that it can tell examples with these words apart."""
LATE = 10.0
"""Longest time that a request may take, in seconds."""


@contextmanager
def running(
    tiny: Base, redis_server: RedisServer, change: Callable[[ServiceState], ServiceState] = lambda state: state, **settings: Any
) -> Iterator[httpx.Client]:
    """Run a service in this process and yield an HTTP client. `change` may replace the service's state."""
    init = lora_from_zero(tiny)
    service_settings = ServiceSettings(redis_url=redis_server.url, allow_without_keys=True, **settings)
    app = create_app(service_settings, [Resident(tiny, {init.name: init})])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    listening = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        app.state.service = change(app.state.service)
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=LATE) as http:
            yield http
    finally:
        server.should_exit = True
        thread.join()


def queued(http: httpx.Client, seed: int = 0, **options: Any) -> str:
    """Request an adapter and return its id. Its job stays queued, because there is no worker."""
    answer = http.post("/adapt", json={**BODY, "options": {"steps": 0, "seed": seed}}, **options)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["adapter_id"])
