"""Every method of the sync and the async client, against a real service."""

import asyncio
import dataclasses
import time
from typing import get_args

import pytest
from quickstudy import (
    Adapter,
    AsyncClient,
    Client,
    Conflict,
    EndEvent,
    Event,
    Invalid,
    NotFound,
    NotReady,
    Prediction,
    Status,
    StatusEvent,
    StepEvent,
    answers,
)

from tests.end_to_end.client.conftest import MAX_INPUTS
from tests.end_to_end.conftest import Served
from worker.ledger import messages

PAIRS = [
    ("close my account", "close"),
    ("please close account", "close"),
    ("order pizza", "order"),
    ("order pizza now please", "order"),
    ("play a song", "play"),
]


def test_adapt_predict_score_and_delete(service: Served) -> None:
    with Client(service.url) as quickstudy:
        assert quickstudy.ready() and quickstudy.ready().missing == ()
        assert [init.name for init in quickstudy.initializations()] == sorted(
            ["asking", "contrastive", "default", "frozen-prototypes", "lora-from-zero", "parts"]
        )
        dry = quickstudy.dry_run(PAIRS, seed=1, name="voices")
        assert dry.status == "new" and dry.labels == {"close": 2, "order": 2, "play": 1} and dry.steps == 10
        assert any("play" in notice.message for notice in dry.warnings)
        made = quickstudy.adapt(PAIRS, seed=1, name="voices", tags=["spoken", "test"], ttl_seconds=600)
        assert made.status == "ready" and made.adapter_id == dry.adapter_id
        state = quickstudy.adapter(made)
        assert state.name == "voices" and state.tags == ("spoken", "test") and state.labels == ("close", "order", "play")
        assert len(state.support_loss) == state.steps == 10 and state.parent is None
        assert [entry.adapter_id for entry in quickstudy.adapters(tag="spoken", status="ready")] == [made.adapter_id]
        assert quickstudy.update(made, name=None, tags=["spoken"]).name is None
        quickstudy.pin(made)
        assert quickstudy.adapter(made).expires_at is None
        quickstudy.unpin(made)
        one = quickstudy.predict(made, "order pizza")
        assert isinstance(one, Prediction) and one.label == "order" and one.probability == max(one.probabilities.values())
        two = quickstudy.predict(made, "order pizza", top_k=2).probabilities
        assert list(two.values()) == pytest.approx(sorted(one.probabilities.values(), reverse=True)[:2])
        score = quickstudy.score(made, [*PAIRS, ("order pizza", "close")])
        assert score.examples == 6 and score.mistakes == (5,) and score.confusion["close"] == {"close": 2, "order": 1}
        assert score.labels["order"].recall == 1
        quickstudy.delete(made)
        with pytest.raises(NotFound, match="no adapter") as error:
            quickstudy.adapter(made)
        assert error.value.status == 404 and error.value.problem["status"] == 404


def test_many_inputs_are_sent_in_parts(service: Served) -> None:
    with Client(service.url) as quickstudy:
        made = quickstudy.adapt(PAIRS, seed=2)
        texts = [text for text, _ in PAIRS] * 11
        assert len(texts) > 2 * MAX_INPUTS
        predictions = quickstudy.predict(made, texts)
        assert [prediction.label for prediction in predictions] == [label for _, label in PAIRS] * 11
        assert len(predictions) == len(texts) and predictions[-1].label == "play"
        with pytest.raises(Invalid, match=r"^inputs\[54\]: expected a text that is not empty") as error:
            quickstudy.predict(made, [*texts[:54], " "])
        assert error.value.row == 54
        with pytest.raises(Invalid, match="inputs: expected 1 to 20 texts, got 0 texts"):
            quickstudy.predict(made, [])


def test_events_are_those_of_the_job(service: Served) -> None:
    received: list[Event] = []
    with Client(service.url) as quickstudy:
        made = quickstudy.adapt(PAIRS, seed=3, on_progress=received.append)
        read_again = list(quickstudy.events(made))
    for events in (received, read_again):
        steps = [event for event in events if isinstance(event, StepEvent)]
        assert [event.step for event in steps] == list(range(1, 11))
        assert isinstance(events[-1], EndEvent) and events[-1].adapter.status == "ready"
        assert [event.support_loss for event in steps] == list(events[-1].adapter.support_loss)
    assert isinstance(received[0], StatusEvent)


def test_an_alias_moves_only_if_its_condition_holds(service: Served) -> None:
    with Client(service.url) as quickstudy:
        first, second = quickstudy.adapt(PAIRS, seed=4), quickstudy.adapt(PAIRS, seed=5)
        assert quickstudy.set_alias("voices", first, expected=None).previous is None
        with pytest.raises(Conflict) as error:
            quickstudy.set_alias("voices", second, expected=second)
        assert not isinstance(error.value, NotReady)
        assert quickstudy.set_alias("voices", second, expected=first).previous == first.adapter_id
        answer = quickstudy.predict("voices", [text for text, _ in PAIRS] * 5)
        assert answer.alias == "voices" and answer.adapter_id == second.adapter_id and len(answer) == 25
        assert {entry.alias: entry.adapter_id for entry in quickstudy.aliases()} == {"voices": second.adapter_id}
        with pytest.raises(Conflict, match="voices") as in_use:
            quickstudy.delete(second)
        assert in_use.value.type == "/problems/adapter-in-use"
        assert [entry.adapter_id for entry in quickstudy.alias("voices").history] == [first.adapter_id]
        assert quickstudy.roll_back_alias("voices").adapter_id == first.adapter_id
        with pytest.raises(Conflict, match="no adapter that it pointed at before is usable"):
            quickstudy.roll_back_alias("voices")
        quickstudy.delete_alias("voices")
        removed = next(quickstudy.audit())
        assert (removed.action, removed.subject, removed.details) == ("alias.removed", "voices", {"from": first.adapter_id})
        with pytest.raises(NotFound):
            quickstudy.predict("voices", "order pizza")


def test_examples_are_added_to_an_adapter(service: Served) -> None:
    with Client(service.url) as quickstudy:
        parent = quickstudy.adapt(PAIRS, seed=6, label_words=True)
        grown = quickstudy.add_examples(parent, [("stop the music", "stop"), ("stop it please", "stop")], name="grown")
        state = quickstudy.adapter(grown)
        assert state.parent == parent.adapter_id and state.examples == 7 and state.label_words and state.name == "grown"
        with pytest.raises(Invalid) as error:
            quickstudy.add_examples(parent, [("play a song", "stop")])
        assert error.value.field == "support[0].label" and error.value.row == 0


def test_errors_name_the_field_and_the_status(service: Served) -> None:
    with Client(service.url) as quickstudy:
        with pytest.raises(Invalid, match="initialization: expected one of") as error:
            quickstudy.adapt(PAIRS, initialization="nope")
        assert error.value.field == "initialization" and error.value.row is None
        made = quickstudy.adapt(PAIRS, seed=7, steps=100, wait=0)
        assert made.status in ("queued", "running")
        with pytest.raises(NotReady) as late:
            quickstudy.wait(made, 0)
        assert late.value.adapter_status in ("queued", "running")
        assert quickstudy.wait(made).status == "ready"


def test_a_class_that_is_a_number_gets_the_remedy(service: Served) -> None:
    expected = r"support\[0\]\.label: expected a text; write a class that is a number in quotes, got 3"
    with Client(service.url) as quickstudy, pytest.raises(Invalid, match=expected):
        quickstudy.adapt([("close my account", 3), ("order pizza", 4)])


def test_every_method_of_the_async_client(service: Served) -> None:
    async def call_all_methods() -> Adapter:
        async with AsyncClient(service.url) as quickstudy:
            assert await quickstudy.ready() and len(await quickstudy.initializations()) == 6
            assert (await quickstudy.dry_run(PAIRS, seed=8)).status == "new"
            received: list[Event] = []
            first, second = await asyncio.gather(
                quickstudy.adapt(PAIRS, seed=8, tags=["async"], on_progress=received.append), quickstudy.adapt(PAIRS, seed=9)
            )
            assert isinstance(received[-1], EndEvent) and [event async for event in quickstudy.events(first)][-1] == received[-1]
            one = await quickstudy.predict(first, "play a song")
            assert one.label == "play"
            several = await quickstudy.predict(first, ["close my account", "order pizza"] * 15, top_k=1)
            assert [prediction.label for prediction in several] == ["close", "order"] * 15
            assert (await quickstudy.score(first, PAIRS)).accuracy == 1
            assert [entry.adapter_id async for entry in quickstudy.adapters(tag="async")] == [first.adapter_id]
            grown = await quickstudy.add_examples(first, [("stop", "stop")])
            assert (await quickstudy.adapter(grown)).parent == first.adapter_id
            await quickstudy.set_alias("async", second)
            assert [entry.alias async for entry in quickstudy.aliases()] == ["async"]
            assert (await quickstudy.alias("async")).history == ()
            with pytest.raises(Conflict):
                await quickstudy.roll_back_alias("async")
            await quickstudy.delete_alias("async")
            changes = [change async for change in quickstudy.audit()]
            assert [change.action for change in changes[:2]] == ["alias.removed", "alias.moved"]
            assert changes[1].details == {"to": second.adapter_id} and changes[1].actor.kind == "no key"
            assert {change.action async for change in quickstudy.audit("alias.moved")} == {"alias.moved"}
            await quickstudy.pin(second)
            assert (await quickstudy.update(second, name="second")).pinned
            await quickstudy.unpin(second)
            await quickstudy.delete(second)
            with pytest.raises(NotFound):
                await quickstudy.adapter(second)
            return await quickstudy.wait(first)

    assert asyncio.run(call_all_methods()).status == "ready"


def test_usage_counts_predictions(service: Served) -> None:
    with Client(service.url) as quickstudy:
        made = quickstudy.adapt(PAIRS, seed=10)
        before = quickstudy.usage()
        quickstudy.predict(made, ["order pizza", "play a song"])
        deadline = time.monotonic() + 10
        while (after := quickstudy.usage()).predictions < before.predictions + 2 and time.monotonic() < deadline:
            time.sleep(0.1)  # the service writes its counts every second
    assert before.tenant == "default" and before.adapters >= 1 and before.bytes > 0 and before.adaptations >= 1
    assert after.predictions == before.predictions + 2 and set(after.limits) >= {"MAX_ADAPTERS", "MAX_JOBS"}

    async def tenant() -> str:
        async with AsyncClient(service.url) as quickstudy:
            return (await quickstudy.usage()).tenant

    assert asyncio.run(tenant()) == "default"


def test_the_client_knows_every_status() -> None:
    assert get_args(Status) == get_args(messages.Status)


ANSWERS: dict[str, type] = {
    "Warned": answers.Notice,
    "AdaptAnswer": answers.Adaptation,
    "DryRunAnswer": answers.DryRun,
    "AdapterView": answers.Adapter,
    "Prediction": answers.Prediction,
    "PredictAnswer": answers.Predictions,
    "LabelScore": answers.LabelScore,
    "ScoreAnswer": answers.Score,
    "AliasView": answers.Alias,
    "AliasEntry": answers.AliasEntry,
    "AliasDetail": answers.AliasDetail,
    "AliasMove": answers.AliasMove,
    "ActorView": answers.Actor,
    "AuditEntry": answers.AuditEntry,
    "InitializationView": answers.Initialization,
    "UsageView": answers.Usage,
    "AdapterPage": answers.AdapterPage,
    "AliasPage": answers.AliasPage,
    "AuditPage": answers.AuditPage,
    "InitializationList": answers.InitializationList,
}


def test_the_client_has_every_field_of_the_answers(service: Served) -> None:
    document = service.http.get("/openapi.json").json()
    schemas = {name.partition("[")[0].partition("_")[0]: schema for name, schema in document["components"]["schemas"].items()}
    for name, kind in ANSWERS.items():
        assert {field.name for field in dataclasses.fields(kind)} == schemas[name]["properties"].keys(), name
    returned = {
        schema["$ref"].rpartition("/")[2].partition("[")[0].partition("_")[0]
        for path in document["paths"].values()
        for operation in path.values()
        for status, answer in operation["responses"].items()
        if status < "300" and "$ref" in (schema := answer.get("content", {}).get("application/json", {}).get("schema", {}))
    }
    assert returned - ANSWERS.keys() == {"Alive", "Readiness"}  # `ready` reads the status, and the missing parts
