"""A predictor in a process of its own: the same answers as in this one, the same errors, and what happens when it goes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from metatrain.artifact import Initialization
from metatrain.base.text import TextBase
from metatrain.baselines import frozen_prototypes, lora_from_zero
from metatrain.errors import ArtifactError
from service.errors import Overloaded, Unavailable
from service.predictor import InProcessPredictor, Wanted
from service.remote_predictor import RemotePredictor
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from tests.end_to_end.conftest import ROOT, Served, served
from tests.end_to_end.test_service import BODY, identity, predict
from tests.service.test_predictor import put
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.servers import weights_client
from worker.store import WeightStore

TEXTS = ["order pizza", "close my account please", "play", "order pizza now please close account"]


@contextmanager
def predictor(url: str, environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "predictor", "--listen", url],
            env={**os.environ, **environment},
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def connected(base: TextBase, url: str) -> AsyncIterator[RemotePredictor]:
    remote = RemotePredictor(base, url)
    await until(remote.alive)
    yield remote
    remote.close()


async def until(true: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.fixture
def catalog(tiny: TextBase) -> list[Initialization]:
    return [lora_from_zero(tiny), frozen_prototypes(tiny)]


def test_answers_and_errors_are_those_of_the_predictor_in_process(
    tiny: TextBase,
    catalog: list[Initialization],
    redis_server: RedisServer,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    store = WeightStore(weights_client(redis_server.url))
    adapters = [put(tiny, store, catalog[seed % 2], seed) for seed in range(6)]
    missing = Wanted("t", "a9", 7, "1" * 64)
    other = put(tiny, store, catalog[0].__class__(**{**catalog[0].__dict__, "scale": 3.0}), 8)
    corrupt = Wanted("t", "a1", 7, "0" * 64)
    own = InProcessPredictor(tiny, {init.name: init for init in catalog}, store, ServiceSettings())
    expected = [own.submit(wanted, TEXTS).result(20) for wanted in adapters]
    own.close()
    url = f"unix://{tmp_path}/predictor.sock"
    variables = {**environment, "REDIS_URL": redis_server.url, "QUEUE_ROWS": "100"}

    async def ask() -> None:
        async with connected(tiny, url) as remote:
            found = await asyncio.gather(*(asyncio.wrap_future(remote.submit(wanted, TEXTS)) for wanted in adapters))
            for one, same in zip(found, expected, strict=True):
                assert one.labels == same.labels and one.truncated == same.truncated and set(one.seconds) == set(same.seconds)
                for row, wanted_row in zip(one.probabilities, same.probabilities, strict=True):
                    assert row == pytest.approx(wanted_row, abs=1e-6)
            for wanted, kind in ((missing, WeightsMissing), (other, ArtifactError), (corrupt, WeightsCorrupt)):
                with pytest.raises(kind):
                    await asyncio.wrap_future(remote.submit(wanted, TEXTS))
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


def test_it_goes_and_comes_back_and_answers_what_it_had(
    tiny: TextBase, catalog: list[Initialization], redis_server: RedisServer, environment: dict[str, str], tmp_path: Path
) -> None:
    store = WeightStore(weights_client(redis_server.url))
    wanted, url = put(tiny, store, catalog[0], 1), f"unix://{tmp_path}/predictor.sock"
    variables = {**environment, "REDIS_URL": redis_server.url}

    async def ask() -> None:
        with predictor(url, variables, tmp_path / "log") as first:
            async with connected(tiny, url) as remote:
                calls = [asyncio.wrap_future(remote.submit(wanted, TEXTS * 16)) for _ in range(8)]
                await asyncio.sleep(0.05)
                first.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(*calls)
                assert [len(answer.probabilities) for answer in answers] == [64] * 8
                await until(lambda: not remote.alive())
                with pytest.raises(Unavailable, match="out of reach"):
                    remote.submit(wanted, TEXTS)
                with predictor(url, variables, tmp_path / "log") as second:
                    await until(remote.alive)
                    call = remote.submit(wanted, TEXTS * 500)
                    await asyncio.sleep(0)
                    second.kill()
                    with pytest.raises(Unavailable, match="went before"):
                        await asyncio.wrap_future(call)

    asyncio.run(ask())


def test_another_base_model_is_refused(
    tiny64: TextBase, redis_server: RedisServer, environment: dict[str, str], tmp_path: Path
) -> None:
    url = f"unix://{tmp_path}/predictor.sock"

    async def ask() -> None:
        remote = RemotePredictor(tiny64, url)
        await until(lambda: "predictor on" in (tmp_path / "log").read_text())
        await asyncio.sleep(1.5)
        assert not remote.alive()
        remote.close()

    with predictor(url, {**environment, "REDIS_URL": redis_server.url}, tmp_path / "log"):
        asyncio.run(ask())


def test_services_predict_through_it(redis_server: RedisServer, environment: dict[str, str], tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/predictor.sock"
    variables = {**environment, "REDIS_URL": redis_server.url, "PREDICTOR_URL": url}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker"], env={**os.environ, **variables}, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        with served(tmp_path, variables) as service:
            with predictor(url, variables, tmp_path / "log"):
                service.wait_ready()
                adapter = identity(service, BODY)
                assert predict(service, adapter, ["order pizza"]).json()["predictions"][0]["label"] == "order"
                answer = predict(service, adapter, ["play a song"])
                assert "forward;dur=" in answer.headers["Server-Timing"]
            _gone(service, adapter)
    finally:
        worker.kill()
        worker.wait()


def _gone(service: Served, adapter: str) -> None:
    deadline = time.monotonic() + 20
    while service.http.get("/readyz").json()["missing"] != ["predictor"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = predict(service, adapter, ["order pizza"])
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
