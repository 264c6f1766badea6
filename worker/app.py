"""The Celery app that the service and the workers share: the queues of wake-ups. Torch-free."""

from celery import Celery

from worker.ledger import names
from worker.ledger.servers import broker


def celery_app(redis_url: str, queue: str) -> Celery:
    """Return the Celery app, for the service that sends wake-ups and for the workers that receive them.

    `queue`: the queue of messages that name no other.

    Messages are JSON. Celery stores no results: the outcome of a job is in its record. A message is acknowledged before its job
    runs, because it is only a wake-up: the reaper announces every unfinished job again.
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
            "health_check_interval": 2,  # a master that disappeared without closing its connections is noticed after twice that
        },
        task_publish_retry=False,
    )
    return app
