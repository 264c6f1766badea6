"""Predictions and scores that are interrupted by a deployment, an overload or a limit."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import redis

from metatrain.models.base import Base
from service.errors import Overloaded
from service.http.state import ServiceState
from service.predicting.interface import STAGES, Answer, Predictor, WeightsKey
from tests.conftest import RedisServer
from tests.service.workerless import BODY, queued, running
from tests.worker.ledger.test_usage import ready
from worker.ledger.aliases import Alias, Aliases
from worker.ledger.records import Records


def test_a_prediction_by_alias_follows_a_deployment_that_deletes_the_previous_adapter(
    tiny: Base, redis_server: RedisServer
) -> None:
    client = redis.Redis.from_url(redis_server.url)

    class DeployingAliases(Aliases):
        """Aliases that imitate a deployment: after one read, the alias moves and its old adapter is deleted."""

        def get(self, tenant: str, alias: str) -> Alias | None:
            current = super().get(tenant, alias)
            if current is not None and current.adapter_id == before:
                self.point(tenant, alias, after, before)
                Records(client).delete(tenant, before)
            return current

    def with_deploying_aliases(state: ServiceState) -> ServiceState:
        return replace(state, aliases=DeployingAliases(client))

    with running(tiny, redis_server, with_deploying_aliases) as http:
        before, after = queued(http, 1), queued(http, 2)
        assert http.put("/aliases/live", json={"adapter_id": before}).status_code == 200
        answer = http.post("/predict", json={"adapter_id": "live", "inputs": ["order"]})
        assert answer.status_code == 409 and after in answer.json()["detail"]  # the answer names the new adapter, which is queued
        assert http.get(f"/adapters/{before}").status_code == 404


def answer_only_once(predictor: Predictor) -> None:
    """Make the predictor answer one call and refuse all others as overloaded."""

    def submit(weights: WeightsKey, texts: Sequence[str], share: int = 1) -> "Future[Answer]":
        if accepted:
            raise Overloaded("enough", 1)
        accepted.append(weights)
        answer: Future[Answer] = Future()
        answer.set_result(Answer(("close", "order"), [[0.9, 0.1]] * len(texts), [], dict.fromkeys(STAGES, 0.0)))
        return answer

    accepted: list[WeightsKey] = []
    predictor.submit = submit  # type: ignore[method-assign]


def test_each_part_of_a_score_is_counted_once_it_is_answered(tiny: Base, redis_server: RedisServer) -> None:
    records = Records(redis.Redis.from_url(redis_server.url))

    def with_limited_predictor(state: ServiceState) -> ServiceState:
        answer_only_once(state.deployed[0].predictor)
        return state

    with running(tiny, redis_server, with_limited_predictor, max_inputs=2) as http:
        adapter = queued(http)
        ready(records, "default", adapter, 1)
        assert http.post(f"/adapters/{adapter}/score", json={"examples": BODY["support"] * 2}).status_code == 429
        assert http.get("/usage").json()["predictions"] == 2


def test_a_score_counts_as_many_requests_as_the_predictions_it_replaces(tiny: Base, redis_server: RedisServer) -> None:
    with running(tiny, redis_server, max_inputs=2, max_requests_a_minute=10) as http:
        path = f"/adapters/{queued(http)}/score"
        answers = [http.post(path, json={"examples": BODY["support"] * 4}) for _ in range(5)]
        refused = [answer.json()["limit"] for answer in answers if answer.status_code == 429]
        # Each score counts as four requests, and ten a minute are allowed. A new minute may begin once during the test.
        assert refused and set(refused) == {"MAX_REQUESTS_A_MINUTE"}
