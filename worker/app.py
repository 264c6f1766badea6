"""The Celery app: how the service and the workers see the queues of wake-ups. Torch-free."""

from celery import Celery

from worker.ledger import names
from worker.ledger.servers import broker


def celery_app(redis_url: str, queue: str) -> Celery:
    """Return the Celery app of either end of the queues. `queue`: where its messages go unless another is named.

    Messages are JSON. There are no results: what became of a job is in its record. Messages are acknowledged early: they are
    wake-ups, and the reaper announces again whatever its worker did not finish.
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
