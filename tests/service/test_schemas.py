"""Validation of a request body stops at the first error, even if the body has very many errors."""

import json
import time
import tracemalloc
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.http.schemas import AdapterChanges, AdaptRequest, ExamplesRequest, PredictRequest
from service.kinds.text_classification import Example, ScoreRequest

MANY = 200_000
EXAMPLE = {"input": "close it", "label": "close"}


@pytest.mark.parametrize(
    ("model", "body", "place"),
    [
        (AdaptRequest[Example], {"support": [1] * MANY}, ("support", 0)),
        (AdaptRequest[Example], {"support": [EXAMPLE, {}, *[1] * MANY]}, ("support", 1, "input")),
        (AdaptRequest[Example], {"support": [EXAMPLE], **dict.fromkeys(map(str, range(MANY)))}, ("0",)),
        (AdaptRequest[Example], {"support": [{**EXAMPLE, **dict.fromkeys(map(str, range(MANY)))}]}, ("support", 0, "0")),
        (AdaptRequest[Example], {"support": [EXAMPLE], "options": dict.fromkeys(map(str, range(MANY)))}, ("options", "0")),
        (AdaptRequest[Example], {"support": [EXAMPLE], "tags": [1] * MANY}, ("tags", 0)),
        (ExamplesRequest[Example], {"support": [None] * MANY}, ("support", 0)),
        (ScoreRequest, {"examples": [EXAMPLE, *[[]] * MANY]}, ("examples", 1)),
        (PredictRequest, {"adapter_id": "live", "inputs": ["text", *[1] * MANY]}, ("inputs", 1)),
        (AdapterChanges, {"tags": ["x", *[1] * MANY]}, ("tags", 1)),
    ],
)
def test_a_wrong_body_near_the_limit_is_refused_at_once(model: type[BaseModel], body: Any, place: tuple[str | int, ...]) -> None:
    content = json.loads(json.dumps(body))
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ValidationError) as refused:
        model.model_validate(content)
    spent, memory = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    errors = refused.value.errors()
    assert errors[0]["loc"] == place and len(errors) <= 2  # an example that lacks both texts has two errors
    assert spent < 0.5 and memory < 1_000_000


def test_a_body_that_is_no_object_is_refused() -> None:
    for body in ([], "text", None, [EXAMPLE] * 3):
        with pytest.raises(ValidationError, match="valid dictionary"):
            AdaptRequest[Example].model_validate(body)
