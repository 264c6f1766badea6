"""Write wake-up messages in Celery's format. Torch-free.

So a job and its wake-up can be stored in one atomic step.
"""

import base64
import json
from typing import Any

from celery import Celery
from kombu.serialization import dumps
from kombu.utils.uuid import uuid

from worker.ledger.messages import ADAPT_TASK, IN_TURN, wake_up


def wake_up_message(app: Celery, tenant: str, adapter_id: str, queue: str) -> str:
    """Return a new wake-up for a job, as `app.send_task` would store it.

    It belongs in the list `names.wake_ups(queue, IN_TURN)`.

    Celery makes the task and kombu encodes it. Only the envelope that kombu's Redis transport puts around both is written here; a
    test compares it with the one of a message that was sent.
    """
    task: Any = app.amqp.as_task_v2(uuid(), ADAPT_TASK, kwargs=wake_up(tenant, adapter_id), ignore_result=None)
    content_type, encoding, body = dumps(  # type: ignore[no-untyped-call]
        task.body, serializer="json"
    )
    delivery = {"exchange": "", "routing_key": queue}
    properties = {"delivery_mode": 2, "delivery_info": delivery, "priority": IN_TURN}
    properties |= {"body_encoding": "base64", "delivery_tag": uuid()}
    envelope = {
        "body": base64.b64encode(body.encode() if isinstance(body, str) else body).decode(),
        "content-encoding": encoding,
        "content-type": content_type,
        "headers": task.headers,
        "properties": {**task.properties, **properties},
    }
    return json.dumps(envelope)
