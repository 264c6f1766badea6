"""A service whose Redis server is frozen: it accepts connections but never answers."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import redis

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from service.http.server_checks import KEEP_SECONDS
from tests.conftest import RedisServer
from tests.service.workerless import BODY, queued, running
from worker.job import JobRunner
from worker.ledger.breaker import CircuitBreaker, ServerSilent, breaker_of
from worker.ledger.records import Records
from worker.ledger.servers import records_client, service_client
from worker.ledger.weights_cache import WeightStore
from worker.process import queues_of
from worker.runtime import Resident, Runtime
from worker.settings import WorkerSettings

PROMISED_SECONDS = 2.0


@contextmanager
def frozen(*servers: RedisServer) -> Iterator[None]:
    """Freeze Redis servers while the block runs."""
    processes = [server._process.pid for server in servers if server._process is not None]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def timed(http: httpx.Client, method: str, path: str, body: object = None) -> tuple[float, httpx.Response]:
    began = time.monotonic()
    answer = http.request(method, path, json=body)
    return time.monotonic() - began, answer


def ready_adapter(http: httpx.Client, tiny: Base, records: "redis.Redis", cache: "redis.Redis", steps: int = 0) -> str:
    """Request an adapter, run its job in this process, and return the adapter's id."""
    adapter = str(http.post("/adapt", json={**BODY, "options": {"steps": steps}}).json()["adapter_id"])
    runtime = Runtime(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    JobRunner("w", WorkerSettings(), Records(records), WeightStore(cache), runtime, queues_of(runtime)).run("default", adapter)
    return adapter


def calls(adapter: str) -> list[tuple[str, str, object]]:
    predict = {"adapter_id": adapter, "inputs": ["order"]}
    return [
        ("GET", "/readyz", None),
        ("GET", "/metrics", None),
        ("POST", "/predict", predict),
        ("POST", "/adapt", BODY),
        ("GET", "/adapters", None),
        ("GET", f"/adapters/{adapter}", None),
        ("GET", "/usage", None),
        ("GET", "/initializations", None),
        ("DELETE", f"/adapters/{adapter}", None),
    ]


def test_every_call_answers_in_time_and_works_again_afterwards(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    with running(tiny, redis_server) as http:
        adapter = ready_adapter(http, tiny, redis_client, redis_client)
        predict = {"adapter_id": adapter, "inputs": ["order"]}
        assert http.post("/predict", json=predict).status_code == 200  # the adapter is on the device from now on
        threads = threading.active_count()
        with frozen(redis_server):
            together = [call for call in calls(adapter) for _ in range(5)]  # more calls than the service has threads
            with ThreadPoolExecutor(len(together)) as pool:
                first = list(pool.map(lambda call: timed(http, *call), together))
            began = time.monotonic()
            later = [timed(http, *call) for call in calls(adapter)]
            spent = time.monotonic() - began
        for seconds, answer in (*first, *later):
            assert seconds < PROMISED_SECONDS, (answer.request.url, seconds)
            if answer.request.url.path != "/metrics" or answer.status_code != 200:
                assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0, answer.text
        assert spent < PROMISED_SECONDS  # all later calls together: none of them waits for the server
        assert threading.active_count() < threads + 45  # at most the framework's own threads, and one that probes
        deadline = time.monotonic() + 5
        while http.post("/predict", json=predict).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert queued(http, seed=2) and redis_client.llen("qs:celery:" + redis_queue(redis_client)) > 0


def redis_queue(client: "redis.Redis") -> str:
    """Return the name of the only list of wake-ups, without Celery's prefix."""
    (name,) = [key.decode().removeprefix("qs:celery:") for key in client.scan_iter("qs:celery:quickstudy*", _type="list")]
    return str(name)


def test_only_what_needs_the_weights_fails_while_their_server_is_frozen(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis", tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = RedisServer(tmp_path_factory.mktemp("cache"))
    other.start()
    cache = redis.Redis.from_url(other.url)
    try:
        with running(tiny, redis_server, cache_url=other.url) as http:
            loaded, cold = (ready_adapter(http, tiny, redis_client, cache, steps) for steps in range(2))
            assert http.post("/predict", json={"adapter_id": loaded, "inputs": ["order"]}).status_code == 200
            with frozen(other):
                seconds, answer = timed(http, "POST", "/predict", {"adapter_id": cold, "inputs": ["order"]})
                assert (answer.status_code, seconds < PROMISED_SECONDS) == (503, True)
                seconds, answer = timed(http, "POST", "/predict", {"adapter_id": loaded, "inputs": ["order"]})
                assert (answer.status_code, seconds < PROMISED_SECONDS) == (200, True)
                assert http.get("/readyz").json()["missing"] == ["worker", "cache"]
            with frozen(redis_server, other):
                time.sleep(KEEP_SECONDS)
                seconds, answer = timed(http, "GET", "/readyz")
                assert (answer.json()["missing"], seconds < PROMISED_SECONDS) == (["redis", "cache"], True)
    finally:
        cache.close()
        other.stop()


def test_a_pause_of_a_second_interrupts_nothing(tiny: Base, redis_server: RedisServer) -> None:
    """A disk that takes a second to write must not lead to refused requests."""
    with running(tiny, redis_server) as http, ThreadPoolExecutor(4) as pool:
        queued(http)
        with frozen(redis_server):
            answers = [pool.submit(http.post, "/adapt", json={**BODY, "options": {"seed": seed}}) for seed in range(4)]
            time.sleep(1.0)
        assert [answer.result().status_code for answer in answers] == [202] * 4


def test_a_breaker_opens_at_a_timeout_and_closes_at_an_answer(redis_server: RedisServer) -> None:
    client = service_client(redis_server.url)
    breaker = breaker_of(client)
    assert breaker is not None and breaker_of(records_client(redis_server.url)) is None
    assert client.ping()
    with frozen(redis_server):
        with pytest.raises(redis.TimeoutError):
            client.ping()
        for _ in range(100):
            with pytest.raises(ServerSilent):
                client.ping()
        assert sum(thread.name == "probe-redis" for thread in threading.enumerate()) == 1
    deadline = time.monotonic() + 5
    while True:
        try:
            breaker.check()
            break
        except ServerSilent:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert client.ping()
    redis_server.stop()  # a server that is gone refuses at once, and so opens no breaker
    with pytest.raises(redis.ConnectionError, match="connecting to"):
        client.ping()
    breaker.check()
    client.close()


def test_other_errors_of_a_call_do_not_open_a_breaker() -> None:
    breaker = CircuitBreaker(lambda: None)

    def fails() -> None:
        raise redis.ResponseError("no")

    with pytest.raises(redis.ResponseError):
        breaker.call(fails)
    assert breaker.call(lambda: 1) == 1


def test_a_breaker_that_cannot_start_its_probe_does_not_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    breaker = CircuitBreaker(lambda: None)

    def times_out() -> None:
        raise redis.TimeoutError

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(redis.TimeoutError):
            breaker.call(times_out)
    assert breaker.call(lambda: 1) == 1
