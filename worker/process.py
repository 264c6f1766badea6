"""A worker process: a Celery worker with a solo pool, and the reaper thread. Run one per device."""

import logging
import os
import warnings
from typing import Any

import celery.apps.worker
from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import worker_ready, worker_shutting_down

from worker.app import celery_app
from worker.collection import resume_collection
from worker.consumer import UnacknowledgedMessages
from worker.job import JobRunner
from worker.ledger.messages import ADAPT_TASK
from worker.ledger.records import Records
from worker.ledger.servers import records_client, weights_client
from worker.ledger.weights_cache import WeightStore
from worker.logs import fields, places
from worker.name import worker_name
from worker.reaper import Reaper
from worker.runtime import Runtime, load_runtime
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)
_DISABLED_FEATURES = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def run_worker(settings: WorkerSettings) -> None:
    """Load the base models, then run jobs until the process is stopped.

    On SIGTERM, claimed jobs have `DRAIN_SECONDS` to finish.
    """
    WorkerProcess(settings).run()


def queues_of(runtime: Runtime) -> dict[str, list[str]]:
    """Return the queues from which a worker may claim jobs: {queue: digests of allowed initializations}.

    The worker has one queue for each task kind on each base model, and one more for each encryption key. The other queues contain
    jobs that earlier versions accepted, the oldest of them in one queue with an empty name. A job may be claimed if the worker has
    its initialization in memory, or if that is stored. All other jobs are left alone.
    """
    queues = [queue for resident in runtime.residents for queue in resident.readable_queues]
    earlier = [queue for resident in runtime.residents for queue in resident.earlier_queues]
    return dict.fromkeys([*queues, *earlier, ""], runtime.known.digests)


class WorkerProcess:
    """A worker process, built from its settings. Creating it loads the base models.

    Raises MetatrainError or SettingsError if a base model, an initialization or a setting cannot be used.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        client = records_client(settings.redis_url)
        cipher = settings.cipher
        store = WeightStore(weights_client(settings.weights_url, timeout=30), cipher)
        records = Records(client, cipher=cipher)
        runtime = load_runtime(settings, records.initializations.get)
        queues = queues_of(runtime)
        self._settings, self._name = settings, worker_name()
        self._queues = [queue for queue in queues if queue]
        self._description = _description(runtime)
        self._runner = JobRunner(
            self._name, settings, records, store, runtime, queues, one_server=settings.weights_url == settings.redis_url
        )
        self._app = celery_app(settings.redis_url, self._queues[0])
        self._reaper = Reaper(
            client,
            records,
            store,
            self._app,
            self._runner.times,
            name=self._name,
            description=self._description,
            erase_seconds=settings.erase_seconds,
        )

    def run(self) -> None:
        """Run jobs until the process is stopped."""
        _warn_of_root()
        celery.apps.worker.safe_say = lambda message, *_: log.info("%s", message)  # it would write bare lines, even with JSON logs
        self._runner.watchdog.start(self._runner.hand_back_hung)
        self._app.conf.worker_consumer = "worker.consumer:PromptConsumer"
        self._app.amqp.Consumer = UnacknowledgedMessages
        _register(self._app, self._runner)
        worker_ready.connect(self._on_ready, weak=False)
        worker_shutting_down.connect(self._on_stop, weak=False)
        options = ["--pool=solo", f"--queues={','.join(self._queues)}", f"--loglevel={self._settings.log_level}"]
        try:
            self._app.worker_main(["--quiet", "worker", *options, f"--hostname={self._name}@%h", *_DISABLED_FEATURES])
        finally:
            self._runner.times.write()  # those of the last jobs, which the reaper has stopped too early to write

    def _on_ready(self, **_: Any) -> None:
        self._reaper.start()
        resume_collection()
        with fields(name=self._name, **self._description):
            log.info("ready")

    def _on_stop(self, **_: Any) -> None:
        self._runner.draining.start()
        self._reaper.stop()


def _warn_of_root() -> None:
    """Log one line if this process runs as root, in place of Celery's warning of several lines."""
    warnings.filterwarnings("ignore", category=SecurityWarning)
    if os.geteuid() == 0:
        log.warning("the worker runs as root; a user of its own is safer")


def _description(runtime: Runtime) -> dict[str, Any]:
    """Return what the worker announces: its device, precision, queues and ids of encryption keys."""
    first = runtime.residents[0]
    queues = [queue for resident in runtime.residents for queue in resident.readable_queues]
    about = {"device": str(first.base.device), "dtype": first.base.precision, "queue": queues[0], "queues": queues}
    return {**about, "keys": first.key_ids} if first.key_ids else about


def _register(app: Celery, runner: JobRunner) -> None:
    """Register the Celery task that runs the job named in a wake-up message."""

    @app.task(name=ADAPT_TASK)  # type: ignore[untyped-decorator]
    def adapt(tenant: str, adapter_id: str) -> None:
        try:
            runner.run(tenant, adapter_id)
        except Exception as error:  # Celery would log the message, which may quote an input; the reaper announces the job again
            with fields(adapter=adapter_id, tenant=tenant):
                log.error("the job was not finished, and will be announced again\n%s", places(error))
