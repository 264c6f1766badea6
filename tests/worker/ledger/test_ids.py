"""Adapter ids."""

from tests.worker.ledger.jobs import RECIPE
from worker.ledger.ids import adapter_id
from worker.ledger.records import Records


def test_an_id_depends_on_all_that_determines_the_weights_and_on_nothing_else(records: Records) -> None:
    key = records.id_key()
    assert key == records.id_key() and len(key) == 32
    base = adapter_id(key, "t", RECIPE)
    assert base == adapter_id(key, "t", RECIPE.model_copy(update={"initialization": "another name of the same digest"}))
    for change in (
        {"support": (("a ", "x"), ("b", "y"))},  # one space
        {"support": (("a", "x"), ("b", "y"), ("b", "y"))},
        {"support": (("a", "y"), ("b", "x"))},
        {"steps": 6},
        {"seed": 1},
        {"label_words": True},
        {"precision": "auto"},
        {"initialization_digest": "e" * 64},
    ):
        assert adapter_id(key, "t", RECIPE.model_copy(update=change)) != base, change
    assert adapter_id(key, "other", RECIPE) != base
    assert adapter_id(b"another key", "t", RECIPE) != base
