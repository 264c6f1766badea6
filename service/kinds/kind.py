"""The protocol of a task kind's HTTP side: its examples, its predictions and their checks."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from service.http.schemas import Options, Warned
from service.predicting.predictor import Answer
from service.settings import ServiceSettings
from worker.kinds.kind import Canonical


@runtime_checkable
class HttpKind(Protocol):
    """The HTTP side of one task kind. Its `name` is that of its `worker.kinds.kind.TaskKind`.

    `example` is the model of one example; its required fields distinguish it from the examples of other kinds.
    `prediction` is the model of the answer to one input.
    """

    @property
    def name(self) -> str: ...

    @property
    def example(self) -> type[BaseModel]: ...

    @property
    def prediction(self) -> type[BaseModel]: ...

    def check(self, support: Sequence[Any], options: Options, settings: ServiceSettings, before: Sequence[Canonical] = ()) -> None:
        """Raise InvalidRequest for the first error in a support set of parsed examples.

        `before`: the stored examples of the adapter that these are added to. The number of examples is checked already.
        """

    def warnings(self, support: Sequence[Canonical]) -> Iterator[Warned]:
        """Yield the warnings of a dry run about a whole support set."""

    def predictions(self, answer: Answer, top_k: int | None) -> list[BaseModel]:
        """Return the predictions for a call's inputs, each with at most `top_k` alternatives (None: all)."""

    def document(self, schemas: dict[str, Any], settings: ServiceSettings) -> None:
        """Write the limits of `settings` into the OpenAPI schema of `example`."""
