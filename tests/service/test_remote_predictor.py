"""A predictor in a separate process: its answers, its errors, its shutdown, and lost connections."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.artifacts.initialization import Initialization
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from service.errors import Overloaded, Unavailable
from service.predicting import remote_predictor, wire
from service.predicting.interface import WeightsKey
from service.predicting.predictor import InProcessPredictor
from service.predicting.remote_predictor import RemotePredictor
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from tests.end_to_end.conftest import Served, served, start_module
from tests.end_to_end.test_service import BODY, identity, predict
from tests.service.test_predictor import put
from tests.warm import Forked
from worker.errors import EncryptionKeyMissing, WeightsCorrupt, WeightsMissing
from worker.ledger.encryption import Cipher, new_key
from worker.ledger.servers import weights_client
from worker.ledger.weights_cache import WeightStore

TEXTS = ["order pizza", "close my account please", "play", "order pizza now please close account"]


@contextmanager
def predictor(url: str, environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes] | Forked"]:
    process = start_module("service", "predictor", "--listen", url, environment={**os.environ, **environment}, log=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def connected(base: Base, url: str) -> AsyncIterator[RemotePredictor]:
    remote = RemotePredictor(base, url)
    await until(remote.alive)
    yield remote
    remote.close()
    await asyncio.sleep(0.1)


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.fixture
def catalog(tiny: Base) -> list[Initialization]:
    return [lora_from_zero(tiny), frozen_prototypes(tiny)]


def test_answers_and_errors_are_those_of_the_predictor_in_process(
    tiny: Base,
    catalog: list[Initialization],
    redis_server: RedisServer,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    store = WeightStore(weights_client(redis_server.url))
    adapters = [put(tiny, store, catalog[seed % 2], seed) for seed in range(6)]
    missing = WeightsKey("t", "a9", 7, "1" * 64)
    unknown = put(tiny, store, replace(catalog[0], scale=3.0), 8)  # an initialization that the predictor does not have
    sealed = put(tiny, WeightStore(weights_client(redis_server.url), Cipher([new_key()])), catalog[0], 10)
    corrupt = WeightsKey("t", "a1", 7, "0" * 64)
    in_process = InProcessPredictor(tiny, {init.name: init for init in catalog}, store, ServiceSettings())
    expected = [in_process.submit(weights, TEXTS).result(20) for weights in adapters]
    in_process.close()
    url = f"unix://{tmp_path}/predictor.sock"
    variables = {**environment, "REDIS_URL": redis_server.url, "QUEUE_ROWS": "100"}

    async def ask() -> None:
        async with connected(tiny, url) as remote:
            answers = await asyncio.gather(*(asyncio.wrap_future(remote.submit(weights, TEXTS)) for weights in adapters))
            for answer, same in zip(answers, expected, strict=True):
                assert answer.labels == same.labels and answer.truncated == same.truncated
                assert set(answer.seconds) == set(same.seconds)
                for row, same_row in zip(answer.outputs, same.outputs, strict=True):
                    assert row == pytest.approx(same_row, abs=1e-6)
            for weights, kind in (
                (missing, WeightsMissing),
                (unknown, ArtifactError),
                (corrupt, WeightsCorrupt),
                (sealed, EncryptionKeyMissing),
            ):
                with pytest.raises(kind):
                    await asyncio.wrap_future(remote.submit(weights, TEXTS))
            calls = [asyncio.wrap_future(remote.submit(adapters[2], TEXTS * 20)) for _ in range(6)]
            refused = [
                problem for problem in await asyncio.gather(*calls, return_exceptions=True) if isinstance(problem, Exception)
            ]
            assert refused and all(isinstance(problem, Overloaded) for problem in refused)
            remote.submit(adapters[3], TEXTS).cancel()
            remote.forget("t", adapters[3].digest)
            assert (await asyncio.wrap_future(remote.submit(adapters[3], TEXTS))).labels == expected[3].labels
            await until(lambda: remote.gauges()["bank_adapters"] >= 1 and remote.gauges()["waiting_inputs"] == 0)

    with predictor(url, variables, tmp_path / "log"):
        asyncio.run(ask())
    assert (tmp_path / "predictor.sock").stat().st_mode & 0o777 == 0o600


def test_at_shutdown_it_answers_accepted_calls_and_refuses_new_ones(
    tiny: Base, catalog: list[Initialization], redis_server: RedisServer, environment: dict[str, str], tmp_path: Path
) -> None:
    """Shut down despite callers that never pause and a connection that never reads."""
    store = WeightStore(weights_client(redis_server.url))
    weights, url = put(tiny, store, catalog[0], 1), f"unix://{tmp_path}/predictor.sock"

    async def ask() -> None:
        with predictor(url, {**environment, "REDIS_URL": redis_server.url}, tmp_path / "log") as process:
            async with connected(tiny, url) as remote:
                _, never_reads = await asyncio.open_unix_connection(f"{tmp_path}/predictor.sock")
                never_reads.write(wire.line({"about": wire.about(tiny)}))
                for number in range(200):
                    never_reads.write(wire.line(wire.call(number, weights, TEXTS * 40, 1)))
                answered, refused = 0, 0
                alive_when_refused: list[bool] = []

                async def call_until_refused() -> None:
                    nonlocal answered, refused
                    while True:
                        try:
                            answer = await asyncio.wrap_future(remote.submit(weights, TEXTS * 4))
                            assert len(answer.outputs) == 16
                            answered += 1
                        except (Unavailable, Overloaded) as error:
                            refused += 1
                            if "shutting down" in str(error):
                                alive_when_refused.append(remote.alive())
                            return

                callers = [asyncio.create_task(call_until_refused()) for _ in range(8)]
                await until(lambda: answered > 20)
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(asyncio.gather(*callers), 20)
                assert refused == 8 and alive_when_refused and not any(alive_when_refused)
                await until(lambda: process.poll() is not None, 20)
                assert process.returncode == 0 and time.monotonic() - began < 20
                await until(lambda: not remote.alive())
                with pytest.raises(Unavailable, match="cannot be reached"):
                    remote.submit(weights, TEXTS)
                never_reads.close()

    asyncio.run(ask())
    assert "Traceback" not in (tmp_path / "log").read_text()


@asynccontextmanager
async def fake_predictor(path: Path, message: bytes) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Run a server that sends each client one message and then stays silent. Yield its connections."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(message)
        await reader.read()

    server = await asyncio.start_unix_server(handle, str(path))
    yield writers
    server.close()
    for writer in writers:
        writer.close()
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("invalid", [b"1\n", b'{"answer": 0}\n', b"not json\n"], ids=["number", "incomplete", "not JSON"])
def test_after_an_invalid_message_it_reconnects(tiny: Base, invalid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "predictor.sock"

    async def ask() -> None:
        async with fake_predictor(path, wire.line({"about": wire.about(tiny), "gauges": {}}) + invalid) as connections:
            remote = RemotePredictor(tiny, f"unix://{path}")
            await until(lambda: len(connections) >= 3, 10)
            remote.close()

    asyncio.run(ask())


def test_a_silent_predictor_is_disconnected_and_its_calls_fail(tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_predictor, "_SILENCE_SECONDS", 1.0)
    path = tmp_path / "predictor.sock"

    async def ask() -> None:
        hello = wire.line({"about": wire.about(tiny), "gauges": {}})
        async with fake_predictor(path, hello), connected(tiny, f"unix://{path}") as remote:
            call = asyncio.wrap_future(remote.submit(WeightsKey("t", "a1", 7, "0" * 64), TEXTS))
            with pytest.raises(Unavailable, match="was lost before the answer"):
                await asyncio.wait_for(call, 4)

    asyncio.run(ask())


def test_a_predictor_with_another_base_model_is_not_used(tiny: Base, tiny64: Base, tmp_path: Path) -> None:
    path = tmp_path / "predictor.sock"

    async def ask() -> None:
        async with fake_predictor(path, wire.line({"about": wire.about(tiny), "gauges": {}})):
            remote = RemotePredictor(tiny64, f"unix://{path}")
            await asyncio.sleep(1)
            assert not remote.alive()
            remote.close()

    asyncio.run(ask())


@pytest.mark.long
def test_a_service_predicts_through_a_separate_predictor(
    redis_server: RedisServer, environment: dict[str, str], tmp_path: Path
) -> None:
    url = f"unix://{tmp_path}/predictor.sock"
    variables = {**environment, "REDIS_URL": redis_server.url, "PREDICTOR_URL": url}
    worker = start_module("worker", environment={**os.environ, **variables}, log=tmp_path / "worker.log")
    try:
        with served(tmp_path, variables) as service:
            with predictor(url, variables, tmp_path / "log"):
                service.wait_ready()
                adapter = identity(service, BODY)
                assert predict(service, adapter, ["order pizza"]).json()["predictions"][0]["label"] == "order"
                answer = predict(service, adapter, ["play a song"])
                assert "forward;dur=" in answer.headers["Server-Timing"]
            check_not_ready_without_predictor(service, adapter)
    finally:
        worker.kill()
        worker.wait()


def check_not_ready_without_predictor(service: Served, adapter: str) -> None:
    deadline = time.monotonic() + 20
    while service.http.get("/readyz").json()["missing"] != ["predictor"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = predict(service, adapter, ["order pizza"])
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
