"""Answers to inputs under an adapter, or why there are none: it is waited for, made again where its weights are gone, and
never replaced by another or by the bare base model."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from metatrain.errors import MetatrainError
from service.errors import AdapterNotReady, ClientGone, Unavailable
from service.http.state import Deployed, ServiceState
from service.http.views import require
from service.predicting.predictor import Answer, WeightsKey
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.ledger.record import Record
from worker.logs import fields

log = logging.getLogger(__name__)
_TRIES = 3
_ANSWER_SECONDS = 60.0


async def answered(
    identity: str, parts: Sequence[Sequence[str]], connection: Request, state: ServiceState, tenant: str
) -> tuple[Record, list[Answer]]:
    """The record of the adapter and an answer to each part, all with the same weights. One part after the other: more than one
    call's worth of inputs waits like one call. Raises UnknownAdapter, AdapterNotReady, Overloaded, Unavailable, ClientGone."""
    record, counted = await run_in_threadpool(state.records.get, tenant, identity), 0
    for _ in range(_TRIES):
        if record is not None and record.readapting:
            record = await state.jobs.wait(tenant, identity, state.settings.readapt_wait_seconds)
        ready = _ready(record, identity)
        try:
            answers: list[Answer] = []
            for part in parts:
                answers.append(await _answer(ready, part, connection, state))
                state.metrics.predicted(answers[-1].seconds)
                if len(answers) > counted:  # each part once, however often they are begun again, and also where a later one fails
                    counted = len(answers)
                    state.meter.predicted(tenant, len(part))
            return ready, answers
        except (WeightsMissing, WeightsCorrupt) as error:
            with fields(adapter=ready.adapter_id, tenant=ready.tenant):
                log.info("%s", error)
            why: Literal["evicted", "corrupt"] = "corrupt" if isinstance(error, WeightsCorrupt) else "evicted"
            deployed = _deployed(ready, state)
            await run_in_threadpool(state.jobs.start_again, ready, why, deployed.queue)
        record = await run_in_threadpool(state.records.get, tenant, identity)
    raise Unavailable(f"adapter {identity} is evicted faster than it is made; the cache is too small")


async def _answer(ready: Record, texts: Sequence[str], connection: Request, state: ServiceState) -> Answer:
    """Raises WeightsMissing, WeightsCorrupt where the weights are not on the device, nor in memory or cache."""
    weights = WeightsKey(ready.tenant, ready.adapter_id, ready.fence, str(ready.digest))
    answer = asyncio.wrap_future(_deployed(ready, state).predictor.submit(weights, texts))
    gone = asyncio.ensure_future(_gone(connection))
    try:
        await asyncio.wait((answer, gone), timeout=_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientGone if gone.done() else Unavailable(f"no prediction within {_ANSWER_SECONDS:.0f} s")
    except MetatrainError as error:
        raise AdapterNotReady(f"this service cannot use adapter {ready.adapter_id}: {error}", adapter_status="ready") from error
    finally:
        answer.cancel()  # gives up its place in the queue
        gone.cancel()


def _deployed(record: Record, state: ServiceState) -> Deployed:
    """Raises AdapterNotReady where this service does not have the adapter's base model."""
    found = state.of_record(record)
    if found is None:
        digest = record.summary.initialization_digest
        reason = f"its initialization, with digest {digest[:12]}…, is not one of this service"
        raise AdapterNotReady(f"this service cannot use adapter {record.adapter_id}: {reason}", adapter_status="ready")
    return found


async def _gone(connection: Request) -> None:
    """Until the client hangs up."""
    while (await connection.receive())["type"] != "http.disconnect":
        pass


def _ready(record: Record | None, identity: str) -> Record:
    record = require(identity, record)
    if record.readapting:
        raise Unavailable(f"adapter {identity} was evicted and is being made again")
    if record.status == "failed":
        raise AdapterNotReady(f"adapter {identity} failed: {record.error}", adapter_status="failed", reason=record.error)
    if record.status != "ready":
        raise AdapterNotReady(f"adapter {identity} is {record.status}", adapter_status=record.status)
    return record
