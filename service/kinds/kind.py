"""The protocol for the HTTP side of a task kind: its examples and their checks, and its predictions."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from service.http.schemas import Options, Warned
from service.predicting.interface import Answer
from service.settings import ServiceSettings
from worker.kinds.kind import Canonical


@runtime_checkable
class HttpKind(Protocol):
    """The HTTP side of one task kind.

    `name` is the name of the matching `worker.kinds.kind.TaskKind`. `example` is the pydantic model of one example; its required
    fields distinguish it from the examples of other kinds. `prediction` is the pydantic model of the prediction for one input.
    """

    @property
    def name(self) -> str: ...

    @property
    def example(self) -> type[BaseModel]: ...

    @property
    def prediction(self) -> type[BaseModel]: ...

    def check(self, support: Sequence[Any], options: Options, settings: ServiceSettings, before: Sequence[Canonical] = ()) -> None:
        """Raise InvalidRequest for the first error in a support set, whose examples are already parsed.

        The caller has checked the number of examples. `before` are the stored examples of an existing adapter that `support` is
        added to; empty if there is none.
        """

    def warnings(self, support: Sequence[Canonical]) -> Iterator[Warned]:
        """Yield the warnings that a dry run reports about a support set as a whole."""

    def predictions(self, answer: Answer, top_k: int | None) -> list[BaseModel]:
        """Convert the predictor's answer to a call into one prediction per input.

        Each prediction has at most `top_k` alternatives, such as labels. None includes all.
        """

    def document(self, schemas: dict[str, Any], settings: ServiceSettings) -> None:
        """Write the limits of examples, which come from `settings`, into the OpenAPI schemas."""
