"""What becomes of a prediction or a score when something happens in its middle."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import redis

from metatrain.models.base import Base
from service.errors import Overloaded
from service.http.state import ServiceState
from service.predicting.predictor import STAGES, Answer, Predictor, WeightsKey
from tests.conftest import RedisServer
from tests.service.workerless import BODY, queued, running
from tests.worker.ledger.test_usage import ready
from worker.ledger.aliases import Alias, Aliases
from worker.ledger.records import Records


def test_a_prediction_by_an_alias_follows_a_deployment_that_deletes_the_adapter_before(
    tiny: Base, redis_server: RedisServer
) -> None:
    client = redis.Redis.from_url(redis_server.url)

    class Deploying(Aliases):
        """Right after it was read for the first time, the alias moves on, and the adapter it was at goes."""

        def get(self, tenant: str, alias: str) -> Alias | None:
            found = super().get(tenant, alias)
            if found is not None and found.adapter_id == before:
                self.point(tenant, alias, after, before)
                Records(client).delete(tenant, before)
            return found

    def deploying(state: ServiceState) -> ServiceState:
        return replace(state, aliases=Deploying(client))

    with running(tiny, redis_server, deploying) as http:
        before, after = queued(http, 1), queued(http, 2)
        assert http.put("/aliases/live", json={"adapter_id": before}).status_code == 200
        answer = http.post("/predict", json={"adapter_id": "live", "inputs": ["order"]})
        assert answer.status_code == 409 and after in answer.json()["detail"]  # it is the new one's answer: that it is queued
        assert http.get(f"/adapters/{before}").status_code == 404


def answers_once(predictor: Predictor) -> Predictor:
    """The same, but for its calls: it takes one, and no other."""

    def submit(weights: WeightsKey, texts: Sequence[str]) -> "Future[Answer]":
        if taken:
            raise Overloaded("enough", 1)
        taken.append(weights)
        answer: Future[Answer] = Future()
        answer.set_result(Answer(("close", "order"), [[0.9, 0.1]] * len(texts), [], dict.fromkeys(STAGES, 0.0)))
        return answer

    taken: list[WeightsKey] = []
    predictor.submit = submit  # type: ignore[method-assign]
    return predictor


def test_parts_of_a_score_are_counted_as_they_are_answered(tiny: Base, redis_server: RedisServer) -> None:
    records = Records(redis.Redis.from_url(redis_server.url))

    def tiring(state: ServiceState) -> ServiceState:
        answers_once(state.deployed[0].predictor)
        return state

    with running(tiny, redis_server, tiring, max_inputs=2) as http:
        adapter = queued(http)
        ready(records, "default", adapter, 1)
        assert http.post(f"/adapters/{adapter}/score", json={"examples": BODY["support"] * 2}).status_code == 429
        assert http.get("/usage").json()["predictions"] == 2


def test_a_score_counts_as_the_predictions_it_would_take(tiny: Base, redis_server: RedisServer) -> None:
    with running(tiny, redis_server, max_inputs=2, max_requests_a_minute=10) as http:
        path = f"/adapters/{queued(http)}/score"
        answers = [http.post(path, json={"examples": BODY["support"] * 4}) for _ in range(5)]
        refused = [answer.json()["limit"] for answer in answers if answer.status_code == 429]
        # Four requests each, of ten in a minute; the minute may turn once.
        assert refused and set(refused) == {"MAX_REQUESTS_A_MINUTE"}
