"""Warnings about a support set: those of its kind of task, and those that all kinds have.

All kinds have warnings about repeated examples and truncated ones.
"""

from collections.abc import Iterator

from service.adapting.checked_request import CheckedRequest
from service.http.schemas import Warned
from service.kinds.kind import SeenSupport
from service.warnings import limited


def warnings(request: CheckedRequest, support: SeenSupport) -> list[Warned]:
    """Return all warnings about a request. They depend only on the request and its base model."""
    limit = support.inputs.limit
    cut = (Warned(field=f"{example.place}.input", message=f"cut to {limit}") for example in support.new if example.seen.truncated)
    return [
        *request.kind.warnings(support),
        *limited(_repeated(support), "examples that are repeated"),
        *limited(cut, f"examples that are cut to {limit}"),
    ]


def _repeated(support: SeenSupport) -> Iterator[Warned]:
    first = {example.stored: "one that the adapter has" for example in support.parent}
    for example in support.new:
        place = first.setdefault(example.stored, example.place)
        if place != example.place:
            yield Warned(field=example.place, message=f"the same example as {place}")
