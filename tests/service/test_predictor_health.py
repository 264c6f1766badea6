"""A predictor that hangs inside a batch."""

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from service.predicting.interface import BATCH_AGE
from service.predicting.predictor import InProcessPredictor
from service.predicting.progress import Progress
from service.predicting.remote_predictor import RemotePredictor
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from tests.end_to_end.conftest import start_module
from tests.servers import until
from tests.service.test_frozen_redis import ready_adapter
from tests.service.test_predictor import put
from tests.service.workerless import running
from worker.ledger.records import Records
from worker.ledger.servers import weights_client
from worker.ledger.weights_cache import WeightStore
from worker.watchdog import HUNG_STATUS


def hang(predictor: Any) -> threading.Event:
    """Let the next batches of a predictor wait for the returned event."""
    release, answers = threading.Event(), predictor._bank.answers

    def hanging(*arguments: Any) -> Any:
        assert release.wait(60)
        return answers(*arguments)

    predictor._bank.answers = hanging
    return release


def test_a_service_with_a_hanging_predictor_says_so_until_it_works_again(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    states: list[Any] = []

    def keep(state: Any) -> Any:
        states.append(state)
        return state

    with running(tiny, redis_server, keep, predictor_hang_seconds=0.5) as http:
        adapter = ready_adapter(http, tiny, redis_client, redis_client)
        call = {"adapter_id": adapter, "inputs": ["order"]}
        assert http.post("/predict", json=call).status_code == 200
        time.sleep(0.7)
        assert http.get("/healthz").status_code == 200  # without calls, the age of the last batch means nothing
        assert "quickstudy_predictor_batch_age_seconds 0.0" in http.get("/metrics").text
        predictor = states[0].deployed[0].predictor
        assert isinstance(predictor, InProcessPredictor)
        release = hang(predictor)
        asked = threading.Thread(target=lambda: http.post("/predict", json=call))
        asked.start()
        deadline = time.monotonic() + 5
        while (health := http.get("/healthz")).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert health.json()["type"] == "/problems/predictor-hangs" and int(health.headers["Retry-After"]) > 0
        ready = http.get("/readyz").json()
        assert "predictor" in ready["missing"] and "no batch of predictions has ended for" in ready["detail"]
        (age,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith("quickstudy_predictor_batch_age")]
        assert float(age.split()[1]) >= 0.5
        release.set()
        asked.join()
        until(lambda: http.get("/healthz").status_code == 200, 5)  # the clock stops a moment after the answer
        assert predictor.alive()
        assert http.post("/predict", json=call).status_code == 200


def test_a_predictor_that_hangs_does_not_stop_the_process_from_ending(
    tiny: Base, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        """Raised in place of the end of the process."""

    def end() -> None:
        raise Ended

    monkeypatch.setattr("service.predicting.predictor.end_hung_process", end)
    init, store = lora_from_zero(tiny), WeightStore(weights_client(redis_server.url))
    settings = ServiceSettings(redis_url=redis_server.url, predictor_hang_seconds=0.3)
    predictor = InProcessPredictor(tiny, {init.name: init}, store, settings)
    release = hang(predictor)
    answer = predictor.submit(put(tiny, store, init, 1), ["order"])
    began = time.monotonic()
    with pytest.raises(Ended):
        predictor.close()
    assert 0.2 < time.monotonic() - began < 5
    release.set()
    assert answer.result(10).outputs
    predictor.close()  # it works again, so it stops as usual


def test_the_clock_of_a_predictor_runs_only_while_there_is_work() -> None:
    progress = Progress()
    assert progress.seconds() == 0
    progress.work_waits()
    time.sleep(0.05)
    progress.work_waits()
    assert progress.seconds() >= 0.05  # further work does not restart the clock
    progress.batch_ended(more=True)
    assert 0 < progress.seconds() < 0.05
    progress.batch_ended(more=False)
    assert progress.seconds() == 0


def test_a_predictor_process_that_hangs_ends_itself(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis", environment: dict[str, str], tmp_path: Path
) -> None:
    url = f"unix://{tmp_path}/predictor.sock"
    variables = {**environment, "REDIS_URL": redis_server.url, "PREDICTOR_HANG_SECONDS": "1"}
    process = start_module(
        "tests.hanging_predictor", "--listen", url, environment={**os.environ, **variables}, log=tmp_path / "log"
    )
    try:
        with running(tiny, redis_server, predictor_url=url) as http:
            deadline = time.monotonic() + 200
            while "predictor" in http.get("/readyz").json()["missing"]:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)
            adapter = ready_adapter(http, tiny, redis_client, redis_client)
            answer = http.post("/predict", json={"adapter_id": adapter, "inputs": ["order"]})
            assert answer.status_code == 503 and process.wait(20) == HUNG_STATUS
            assert http.get("/healthz").status_code == 200  # a restart of the service would not help
            assert "predictor" in http.get("/readyz").json()["missing"]
    finally:
        process.kill()
        process.wait()
    log_text = (tmp_path / "log").read_text()
    assert "a predictor hangs" in log_text and "thread predictor" in log_text
    assert Records(redis_client).get("default", adapter) is not None


def test_a_service_reads_the_health_of_a_predictor_process_from_its_gauges(tiny: Base, tmp_path: Path) -> None:
    async def check() -> None:
        remote = RemotePredictor(tiny, f"unix://{tmp_path}/nobody.sock", 30)
        assert not remote.alive()
        remote._writer = object()  # type: ignore[assignment]
        for health, alive in (
            ({"gauges": {}}, True),
            ({"gauges": {BATCH_AGE: 29.0}, "stopping": False}, True),
            ({"gauges": {BATCH_AGE: 31.0}}, False),
            ({"gauges": {}, "stopping": True}, False),
            ({"gauges": {}}, True),
        ):
            remote._handle_message(health)
            assert remote.alive() is alive and not remote.needs_restart()
        remote._writer = None
        remote.close()

    asyncio.run(check())
