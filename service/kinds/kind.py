"""What a kind of task is to HTTP: the shape of its examples and answers, and what a request of it may hold."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pydantic import BaseModel

from service.http.schemas import Options, Warned
from service.predicting.predictor import Answer
from service.settings import ServiceSettings
from worker.kinds.kind import Canonical


class HttpKind(Protocol):
    """One kind of task, of the same `name` as its `worker.kinds.kind.TaskKind`.

    `example`: the body of one example; its required fields tell it from the examples of other kinds. `prediction`: the answer to
    one input.
    """

    @property
    def name(self) -> str: ...

    @property
    def example(self) -> type[BaseModel]: ...

    @property
    def prediction(self) -> type[BaseModel]: ...

    def check(self, support: Sequence[Any], options: Options, settings: ServiceSettings, before: Sequence[Canonical] = ()) -> None:
        """Raise InvalidRequest for the first thing that is wrong with a support set of parsed examples. `before`: the examples, as
        they are kept, that these are to stand beside. Their number is checked already."""

    def warnings(self, support: Sequence[Canonical]) -> Iterator[Warned]:
        """What a dry run says of a whole support set."""

    def predictions(self, answer: Answer, top_k: int | None) -> list[BaseModel]:
        """The answers to a call's inputs. `top_k`: only so many alternatives of each."""

    def document(self, schemas: dict[str, Any], settings: ServiceSettings) -> None:
        """Show the limits of `settings` in the OpenAPI schemas of `example`."""
