"""The protocol for the HTTP side of a task kind: its examples and their checks, and its predictions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from metatrain.models.inputs import Inputs, Seen
from service.http.schemas import Options, Warned
from service.predicting.interface import Answer
from service.settings import ServiceSettings
from worker.kinds.kind import Canonical


@dataclass(frozen=True)
class SeenExample:
    """An example in its stored form, and what the base model sees of it.

    `place`: its name in messages: `support[3]`, or `the adapter` for one of the adapter that examples are added to.
    """

    place: str
    stored: Canonical
    seen: Seen


@dataclass(frozen=True)
class SeenSupport:
    """A support set as the base model sees it.

    `parent`: the examples of the adapter that others are added to; empty if there is none. `new`: those of the request, in its
    order. `inputs`: the encoder of the base model.
    """

    parent: tuple[SeenExample, ...]
    new: tuple[SeenExample, ...]
    inputs: Inputs

    @property
    def examples(self) -> tuple[SeenExample, ...]:
        return (*self.parent, *self.new)


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

    def check_seen(self, support: SeenSupport, options: Options) -> None:
        """Raise InvalidRequest for the first new example that the base model cannot learn from.

        Such an example is one of which the model sees nothing, or that it cannot tell from one with another answer. The service
        ignores the error for an adapter that is on record already.
        """

    def warnings(self, support: SeenSupport) -> Iterator[Warned]:
        """Yield warnings about a support set, bounded in number.

        They have labels and positions, but no inputs. The service adds those about repeated and truncated examples.
        """

    def predictions(self, answer: Answer, top_k: int | None) -> list[BaseModel]:
        """Convert the predictor's answer to a call into one prediction per input.

        Each prediction has at most `top_k` alternatives, such as labels. None includes all.
        """

    def document(self, schemas: dict[str, Any], settings: ServiceSettings) -> None:
        """Write the limits of examples, which come from `settings`, into the OpenAPI schemas."""
