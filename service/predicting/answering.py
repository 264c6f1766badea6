"""Predict inputs with an adapter, or raise an error that says why this is not possible.

If the adapter's weights were evicted or are corrupt, the adapter is adapted again, and the request waits up to
READAPT_WAIT_SECONDS for it. No other adapter, and not the bare base model, is ever used instead.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal

from fastapi import Request

from metatrain.errors import MetatrainError
from service.errors import AdapterNotReady, ClientGone, Unavailable
from service.http.state import ServiceState
from service.http.tenant_threads import in_thread
from service.http.views import require
from service.predicting.interface import Answer, WeightsKey
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.ledger.record import Record
from worker.logs import fields

log = logging.getLogger(__name__)
_TRIES = 3


async def answer_parts(
    identity: str, parts: Sequence[Sequence[str]], connection: Request, state: ServiceState, tenant: str
) -> tuple[Record, list[Answer]]:
    """Predict several lists of inputs (parts) with one adapter. Return its record and one answer per part.

    All answers come from the same weights. The parts are sent to the predictor one after the other, so that a request with many
    inputs takes no more room in the predictor's queue than its largest part. Raises UnknownAdapter, AdapterNotReady, Overloaded,
    Unavailable, and ClientGone if the client of `connection` disconnects.
    """
    record, counted = await in_thread(state.records.get, tenant, identity), 0
    for _ in range(_TRIES):
        if record is not None and record.readapting:
            record = await state.jobs.wait(tenant, identity, state.settings.readapt_wait_seconds)
        ready = _require_ready(record, identity)
        try:
            answers: list[Answer] = []
            for part in parts:
                answers.append(await _answer(ready, part, connection, state))
                state.metrics.observe_prediction(answers[-1].seconds)
                # Count each part in the tenant's usage exactly once, even if a later part fails or all parts are predicted again.
                if len(answers) > counted:
                    counted = len(answers)
                    state.meter.count_predictions(tenant, len(part))
            return ready, answers
        except (WeightsMissing, WeightsCorrupt) as error:
            with fields(adapter=ready.adapter_id, tenant=ready.tenant):
                log.info("%s", error)
            why: Literal["evicted", "corrupt"] = "corrupt" if isinstance(error, WeightsCorrupt) else "evicted"
            await in_thread(state.jobs.readapt, ready, why, state.require_deployed(ready).queue(ready.summary))
        record = await in_thread(state.records.get, tenant, identity)
    raise Unavailable(f"adapter {identity} is evicted faster than it can be adapted; give the cache more memory")


async def _answer(ready: Record, texts: Sequence[str], connection: Request, state: ServiceState) -> Answer:
    """Predict one part: wait for the predictor's answer, the client's disconnection or the timeout.

    If the weights are neither on the device nor in host memory, the predictor reads them from the cache. Raises WeightsMissing if
    the cache does not have them, and WeightsCorrupt if their digest is not the one in the record.
    """
    weights = WeightsKey(ready.tenant, ready.adapter_id, ready.fence, str(ready.digest))
    seconds = state.settings.predict_seconds
    share = state.tenants.share_of(ready.tenant)
    answer = asyncio.wrap_future(state.require_deployed(ready).predictor.submit(weights, texts, share))
    disconnected = asyncio.ensure_future(_wait_for_disconnect(connection))
    try:
        await asyncio.wait((answer, disconnected), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientGone if disconnected.done() else Unavailable(f"no prediction within {seconds:g} s (PREDICT_SECONDS)")
    except MetatrainError as error:
        raise AdapterNotReady(f"this service cannot use adapter {ready.adapter_id}: {error}", adapter_status="ready") from error
    finally:
        answer.cancel()  # frees the call's place in the predictor's queue
        disconnected.cancel()


async def _wait_for_disconnect(connection: Request) -> None:
    while (await connection.receive())["type"] != "http.disconnect":
        pass


def _require_ready(record: Record | None, identity: str) -> Record:
    record = require(identity, record)
    if record.readapting:
        raise Unavailable(f"adapter {identity} was evicted and is being adapted again")
    if record.status == "failed":
        raise AdapterNotReady(f"adapter {identity} failed: {record.error}", adapter_status="failed", reason=record.error)
    if record.status != "ready":
        raise AdapterNotReady(f"adapter {identity} is {record.status}", adapter_status=record.status)
    return record
