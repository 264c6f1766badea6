"""The forms of examples and inputs that the client takes, and the errors for all others."""

import asyncio
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from quickstudy import AsyncClient, Client, Invalid, QuickstudyError
from quickstudy.examples import inputs_as_json

from tests.client.scripted import ADAPTED, Reply, problem, serving

Pandas = namedtuple("Pandas", ["Index", "text", "label"])
Pair = namedtuple("Pair", ["utterance", "intent"])


class Frame:
    """A data frame with the methods of pandas that the client uses."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.columns = rows, list(rows[0])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self.rows


SENT = [{"input": "close it", "label": "close"}, {"input": "how much", "label": "ask"}]


@pytest.mark.parametrize(
    "examples",
    [
        [("close it", "close"), ["how much", "ask"]],
        [{"input": "close it", "label": "close"}, {"text": "how much", "label": "ask"}],
        [{"text": "close it", "label": "close", "n": 1}, {"label": "ask", "text": "how much", "Index": 7}],
        [Pandas(0, "close it", "close"), Pandas(1, "how much", "ask")],
        [Pair("close it", "close"), Pair("how much", "ask")],
        Frame([{"text": "close it", "label": "close", "more": None}, {"text": "how much", "label": "ask", "more": None}]),
        np.array([["close it", "close"], ["how much", "ask"]]),
        [(np.str_("close it"), np.str_("close")), (np.array("how much"), "ask")],
        {"close it": "close", "how much": "ask"}.items(),
    ],
)
def test_examples_are_sent_whatever_form_they_have(examples: Any) -> None:
    adapted = Reply(202, ADAPTED)
    with serving(adapted, adapted, problem(404, "no such adapter")) as server, Client(server.url) as quickstudy:
        quickstudy.adapt(examples)
        quickstudy.add_examples("a1", examples)
        with pytest.raises(QuickstudyError):
            quickstudy.score("a1", examples)
    assert [request.body.get("support") or request.body["examples"] for request in server.requests] == [SENT] * 3


def test_a_real_data_frame_is_sent_whole_and_by_rows() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{"n": 1, "text": "close it", "label": "close"}, {"n": 2, "text": "how much", "label": "ask"}])
    forms = [frame, frame.itertuples(), frame.itertuples(index=False), frame.to_dict("records"), frame[["text", "label"]].values]
    forms += [frame.iterrows(), [row for _, row in frame.iterrows()]]
    with serving(*[Reply(202, ADAPTED)] * len(forms)) as server, Client(server.url) as quickstudy:
        for form in forms:
            quickstudy.adapt(form)
    assert [request.body["support"] for request in server.requests] == [SENT] * len(forms)


def test_a_data_frame_that_cannot_be_sent_is_refused_in_its_own_words() -> None:
    pandas = pytest.importorskip("pandas")
    twice = pandas.DataFrame([["a", "b", "x"]], columns=["text", "text", "label"])
    missing = pandas.DataFrame({"text": ["a", "b"], "label": pandas.array(["x", pandas.NA], dtype="string")})
    with serving() as server, Client(server.url) as quickstudy:
        for examples, message in [
            (twice, "support: expected different column names, got 'text' more than once"),
            (missing, "support[1].label: expected a text, got a missing value"),
            ([("a", "x"), ("b", pandas.NA)], "support[1].label: expected a text, got a missing value"),
        ]:
            with pytest.raises(Invalid) as error:
                quickstudy.adapt(examples)
            assert str(error.value) == message
        with pytest.raises(Invalid) as error:
            quickstudy.predict("a1", missing)
        assert str(error.value) == 'inputs: expected a list of inputs, got a DataFrame; did you mean frame["text"]'
    assert not server.requests


def test_numpy_scalars_are_sent_as_numbers() -> None:
    with serving(problem(422, "refused")) as server, Client(server.url) as quickstudy, pytest.raises(Invalid):
        quickstudy.adapt([(np.float32(0.5), np.int64(3)), ("b", np.bool_(True))])
    assert server.requests[0].body["support"] == [{"input": 0.5, "label": 3}, {"input": "b", "label": True}]


EXPECTED = "a pair (text, label), or a mapping or row with 'text' or 'input' and 'label'"


@pytest.mark.parametrize(
    ("examples", "row", "message"),
    [
        ([("fine", "x"), ("a \ud83d", "y")], 1, "support[1].input: expected Unicode text, got half of a surrogate pair"),
        ([("fine", "x"), ("b", "\udcff")], 1, "support[1].label: expected Unicode text, got half of a surrogate pair"),
        ([("a b", float("nan"))], 0, "support[0].label: expected a text, got NaN"),
        ([("a b", np.float64("nan"))], 0, "support[0].label: expected a text, got NaN"),
        ([("a", "x"), (float("inf"), "y")], 1, "support[1].input: expected a text, got inf"),
        ([("a", "x"), (b"b", "y")], 1, "support[1].input: expected a text, got a value of type bytes"),
        ([("a", {"x"})], 0, "support[0].label: expected a text, got a value of type set"),
        ([("a", np.array(["x", "y"]))], 0, "support[0].label: expected a text, got a value of type ndarray"),
        (["ab", "cd"], 0, f"support[0]: expected {EXPECTED}, got 'ab'"),
        ([("a", "x"), ("a", "x", "y")], 1, f"support[1]: expected {EXPECTED}, got a tuple of length 3"),
        ([("a", "x"), ["a", "x", "y"]], 1, f"support[1]: expected {EXPECTED}, got a list of length 3"),
        ([("a",)], 0, f"support[0]: expected {EXPECTED}, got a tuple of length 1"),
        ([("a", "x"), 7], 1, f"support[1]: expected {EXPECTED}, got 7"),
        ([{"a", "x"}], 0, f"support[0]: expected {EXPECTED}, got a value of type set"),
        ([{"utterance": "a", "intent": "x"}], 0, f"support[0]: expected {EXPECTED}, got the keys 'utterance', 'intent'"),
        ([{"text": "a", "input": "a", "label": "x"}], 0, f"support[0]: expected {EXPECTED}, got the keys"),
        ([{}], 0, f"support[0]: expected {EXPECTED}, got an object"),
        ([SimpleNamespace(text="a", label="x")], 0, f"support[0]: expected {EXPECTED}, got a value of type SimpleNamespace"),
        ("text", None, f"support: expected a list in which each example is {EXPECTED}, got 'text'"),
        ({"a": "x"}, None, f"support: expected a list in which each example is {EXPECTED}, got an object"),
        (None, None, f"support: expected a list in which each example is {EXPECTED}, got nothing"),
    ],
)
def test_an_example_that_cannot_be_sent_is_named(examples: Any, row: int | None, message: str) -> None:
    async def adapt(url: str) -> None:
        async with AsyncClient(url) as quickstudy:
            await quickstudy.adapt(examples)

    with serving() as server, Client(server.url) as quickstudy:
        calls: tuple[Callable[[], Any], ...] = (
            lambda: quickstudy.dry_run(examples),
            lambda: quickstudy.adapt(examples),
            lambda: asyncio.run(adapt(server.url)),
        )
        for call in calls:
            with pytest.raises(Invalid) as error:
                call()
            assert str(error.value).startswith(message) and len(str(error.value)) <= 300
            assert error.value.row == row and error.value.status is None
    assert not server.requests


def test_an_input_that_cannot_be_sent_is_named_in_every_part() -> None:
    prediction = {"label": "x", "probabilities": {"x": 1.0}, "none_of_these": None}
    answer = {"adapter_id": "a1", "digest": "d", "predictions": [prediction] * 256, "truncated": []}
    inputs: list[Any] = [*(["fine"] * 300), "half \ud83d"]
    with serving(Reply(200, answer)) as server, Client(server.url) as quickstudy, pytest.raises(Invalid) as error:
        quickstudy.predict("a1", inputs)
    assert error.value.row == 300 and "inputs[300]: expected Unicode text" in str(error.value)
    inputs = ["fine", float("nan")]
    with (
        serving() as server,
        Client(server.url) as quickstudy,
        pytest.raises(Invalid, match=r"inputs\[1\]: expected a text, got NaN"),
    ):
        quickstudy.predict("a1", inputs)
    assert not server.requests


def test_the_old_name_of_the_client_takes_mappings_too(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning):
        from importlib import reload

        import service.client

        reload(service.client)
    with serving(Reply(202, ADAPTED)) as server, service.client.Client(server.url) as quickstudy:
        quickstudy.adapt([{"input": "close it", "label": "close"}, {"input": "how much", "label": "ask"}])
    assert server.requests[0].body["support"] == SENT


def sent(examples: Any) -> Any:
    """Adapt to the examples and return what the service gets."""
    with serving(Reply(202, ADAPTED)) as server, Client(server.url) as quickstudy:
        quickstudy.adapt(examples)
    return server.requests[0].body["support"]


class Keyed:
    """A row with names that is no Mapping, and that iterates over its names, as a group of HDF5 does."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def keys(self) -> Iterator[str]:
        return iter(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> str:
        return self.values[name]


def sqlite_rows(query: str) -> list[Any]:
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    return database.execute(query).fetchall()


RECORDS = np.array([("close", "close it"), ("ask", "how much")], dtype=[("label", "U9"), ("text", "U9")])
LABEL_FIRST = namedtuple("LABEL_FIRST", ["label", "input"])
INTENT_FIRST = namedtuple("INTENT_FIRST", ["intent", "text"])
BY_NAME = "select 'close' as label, 'close it' as text union all select 'ask', 'how much' order by label desc"


@pytest.mark.parametrize(
    "rows",
    [
        sqlite_rows(BY_NAME),
        RECORDS,
        list(RECORDS.view(np.recarray)),
        [LABEL_FIRST("close", "close it"), LABEL_FIRST("ask", "how much")],
        [Keyed(label="close", text="close it"), Keyed(label="ask", input="how much")],
    ],
)
def test_values_with_names_are_found_by_name_in_any_order(rows: Any) -> None:
    assert sent(rows) == SENT


def test_a_series_of_pandas_is_read_by_name_or_as_a_pair() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"label": ["close", "ask"], "text": ["close it", "how much"]})
    assert sent([row for _, row in frame.iterrows()]) == SENT
    assert sent([pandas.Series(["close it", "close"]), pandas.Series(["how much", "ask"])]) == SENT


class PolarsFrame:
    """A data frame with the method of polars that has the name of one of pandas."""

    columns = ("text", "label")

    def to_dict(self, *, as_series: bool = True) -> dict[str, Any]:
        return {}


class OnlyLength:
    """An object with a length and nothing else."""

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "examples",
    [
        PolarsFrame(),
        np.array("a"),
        [OnlyLength()],
        [np.array("a")],
        [int],
        [PolarsFrame()],
        sqlite_rows("select 'close' as intent, 'close it' as utterance"),
        sqlite_rows("select 'close' as label, 'a' as text, 'b' as text"),
        [INTENT_FIRST("close", "close it")],
        np.array([("a", "b")], dtype=[("one", "U1"), ("two", "U1")]),
    ],
)
def test_what_is_no_list_of_examples_is_refused_in_one_line(examples: Any) -> None:
    with serving() as server, Client(server.url) as quickstudy, pytest.raises(Invalid) as error:
        quickstudy.adapt(examples)
    assert str(error.value).startswith("support") and EXPECTED in str(error.value) and not server.requests


@pytest.mark.parametrize("inputs", [Frame([{"text": "a"}]), PolarsFrame(), {"a": 1}, b"ab", np.array("ab"), 7, None])
def test_what_is_no_list_of_inputs_is_refused_in_one_line(inputs: Any) -> None:
    with serving() as server, Client(server.url) as quickstudy, pytest.raises(Invalid) as error:
        quickstudy.predict("a1", inputs)
    assert str(error.value).startswith("inputs: expected a list of inputs, got ") and not server.requests


def test_a_text_is_not_sent_letter_by_letter() -> None:
    with pytest.raises(Invalid, match="inputs: expected a list of inputs, got 'hello'"):
        inputs_as_json("hello", "inputs")
