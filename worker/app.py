"""The Celery app for wake-ups, the queue messages that tell a worker to run a job. Torch-free."""

from celery import Celery

from worker.ledger import names
from worker.ledger.breaker import ANSWER_SECONDS
from worker.ledger.servers import broker

_PATIENT = {"socket_timeout": 10, "socket_connect_timeout": 3}
_OF_SERVICES = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": ANSWER_SECONDS, "max_retries": 0}


def celery_app(redis_url: str, queue: str, *, of_service: bool = False) -> Celery:
    """Return the Celery app. The service sends wake-ups with it, and the workers receive them.

    `queue`: the default queue, for messages sent without a queue name. `of_service`: True for the short time-outs of a service,
    whose callers wait; workers wait longer.

    Messages are JSON. Celery stores no results, because the outcome of a job is in its record. A worker acknowledges a message
    before it runs the job. If the worker then dies, the job is not lost: the reaper sends a new wake-up for every unfinished job.
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
            **(_OF_SERVICES if of_service else _PATIENT),
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "health_check_interval": 2,  # a server that vanished without closing its connections is noticed within twice this time
        },
        task_publish_retry=False,
    )
    return app
