"""The Celery app of a worker process: solo pool, one process a device, a reaper in a thread."""

import base64
import json
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, cast

import redis
from celery import Celery
from celery.signals import worker_ready, worker_shutting_down
from kombu.exceptions import OperationalError

from worker.ledger import names
from worker.ledger.messages import ADAPT_TASK, FIRST, IN_TURN, wake_up
from worker.ledger.records import Records
from worker.ledger.servers import broker, records_client, weights_client
from worker.ledger.store import WeightStore
from worker.logs import configure, fields, places
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.runtime import Runtime
    from worker.tasks import Hands

log = logging.getLogger(__name__)
ALIVE_SECONDS = 6
REAP_EVERY = 1.0
_NO_CHATTER = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def celery_app(redis_url: str, queue: str) -> Celery:
    """The queues, for both ends of them, `queue` being the one of this process. JSON only; no results: what a job gave is in its
    record.

    Messages are acknowledged early: they are wake-ups, and the reaper announces again whatever its worker did not finish.
    """
    url, options = broker(redis_url)
    app = Celery("quickstudy", broker=url)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=queue,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            **options,
            "global_keyprefix": names.CELERY_PREFIX,
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "health_check_interval": 2,  # a master that vanished without a word is missed after twice that
        },
        task_publish_retry=False,
    )
    return app


def oldest_wake_up(client: "redis.Redis", queue: str) -> tuple[str, str] | None:
    """(tenant, adapter id) of the wake-up in its turn that has waited longest in `queue`, else of the longest among those that go
    first; None where none waits."""
    for suffix in (f"\x06\x16{IN_TURN}", ""):  # kombu's names for a queue's priorities
        message = cast(bytes | None, client.lindex(f"{names.CELERY_PREFIX}{queue}{suffix}", -1))
        if message is not None:
            _, named, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
            return named["tenant"], named["adapter_id"]
    return None


def queues_of(runtime: "Runtime") -> dict[str, list[str]]:
    """Return the queues that a worker takes jobs of, as `Records.claim` takes them.

    These are the queues of its base models, and those that jobs had in earlier versions, when base models were told apart by their
    weights alone (or not at all: the queue without a name). Of the latter it takes only jobs of initializations that it has.
    """
    digests = list(runtime.by_digest)
    earlier = {resident.earlier_queue: digests for resident in runtime.residents}
    return {**{resident.queue: [] for resident in runtime.residents}, **earlier, "": digests}


def _tend(hands: "Hands", client: "redis.Redis", app: Celery) -> None:
    """Announce again what was lost, remove records that have had their time, and deleted text from the append-only file."""
    found = {queue: oldest_wake_up(client, queue) for queue in hands.records.waiting.queues()}
    oldest = {queue: job for queue, job in found.items() if job is not None}
    for tenant, adapter_id, queue in hands.records.waiting.due(oldest=oldest):
        with fields(adapter=adapter_id, tenant=tenant):
            log.info("announced again")
        app.send_task(ADAPT_TASK, kwargs=wake_up(tenant, adapter_id), priority=FIRST, queue=queue or app.conf.task_default_queue)
    for tenant, adapter_id, fence in hands.records.retention.retire():
        hands.store.remove(tenant, adapter_id, fence)
    try:
        if hands.records.retention.erase(int(1000 * hands.settings.erase_seconds)):
            log.info("the append-only file has been written anew, without what was deleted")
    except redis.ResponseError as error:
        log.warning("deleted text stays in the append-only file until the server writes it anew: %s", error)


def run_worker(settings: WorkerSettings) -> None:
    """Load the base model, then take jobs until told to stop (SIGTERM finishes the job at hand)."""
    configure("worker", settings.log_level, settings.log_format)
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    from worker.runtime import load_runtime  # brings torch in; the service imports this module without it
    from worker.tasks import Hands

    client = records_client(settings.redis_url)
    cache = weights_client(settings.weights_url, timeout=30)
    name = f"{socket.gethostname()}-{os.getpid()}"
    runtime = load_runtime(settings)
    queues = queues_of(runtime)
    hands = Hands(name, settings, Records(client), WeightStore(cache), runtime, queues)
    listened = [queue for queue in queues if queue]
    app = celery_app(settings.redis_url, listened[0])
    app.conf.worker_consumer = "worker.consumer:PromptConsumer"

    @app.task(name=ADAPT_TASK)  # type: ignore[untyped-decorator]
    def adapt(tenant: str, adapter_id: str) -> None:
        try:
            hands.run(tenant, adapter_id)
        except Exception as error:  # Celery would log its message, which may quote an input; the reaper brings the job back
            with fields(adapter=adapter_id, tenant=tenant):
                log.error("the job was left as it is\n%s", places(error))

    stopping = threading.Event()
    first = runtime.residents[0].base
    own = [resident.queue for resident in runtime.residents]
    description = {"device": str(first.device), "dtype": first.precision, "queue": own[0], "queues": own}

    def reap() -> None:
        """Say again and again that this worker is alive, and look after the records."""
        while not stopping.is_set():
            try:
                hands.records.workers.announce(name, description, ALIVE_SECONDS)
                _tend(hands, client, app)
            except (redis.RedisError, OperationalError) as error:
                log.warning("Redis is out of reach (%s), trying again", type(error).__name__)
            except Exception as error:  # whatever it was, jobs must go on being announced
                log.error("the reaper stumbled\n%s", places(error))
            stopping.wait(REAP_EVERY)

    def on_ready(**_: Any) -> None:
        threading.Thread(target=reap, name="reaper", daemon=True).start()
        with fields(name=name, **description):
            log.info("ready")

    def on_stop(**_: Any) -> None:
        stopping.set()
        hands.draining.begin()
        try:
            hands.records.workers.remove(name)
        except redis.RedisError:
            log.info("Redis was gone before this worker")

    worker_ready.connect(on_ready, weak=False)
    worker_shutting_down.connect(on_stop, weak=False)
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=solo",
            f"--queues={','.join(listened)}",
            f"--loglevel={settings.log_level}",
            f"--hostname={name}@%h",
            *_NO_CHATTER,
        ]
    )
