"""All kinds of tasks as HTTP shows them. A new one is a file beside this one and a line here, or another package's entry point."""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Union

from pydantic import BaseModel, Discriminator, Tag

from metatrain.plugins import by_name, installed
from service.errors import InvalidRequest
from service.kinds.kind import HttpKind
from service.kinds.text_classification import TextClassification

ENTRY_POINTS = "quickstudy.http_kinds"
_OWN: tuple[HttpKind, ...] = (TextClassification(),)


@cache
def http_kinds() -> dict[str, HttpKind]:
    """Return the product's own kinds, and those of installed packages (entry points named `quickstudy.http_kinds`)."""
    found = [*_OWN, *(make() for _, make in installed(ENTRY_POINTS))]
    return by_name(((kind.name, kind) for kind in found), ENTRY_POINTS)


def example_type() -> Any:
    """The type of one example in a body: that of the only kind, or one of those of all kinds, by the fields that it has."""
    return _one_of({kind.name: kind.example for kind in http_kinds().values()})


def prediction_type() -> Any:
    """The type of the answer to one input."""
    models = [kind.prediction for kind in http_kinds().values()]
    return models[0] if len(models) == 1 else Union[tuple(models)]  # noqa: UP007  (of a number that is known only now)


def kind_of(support: Sequence[BaseModel]) -> HttpKind:
    """The kind that a support set of parsed examples is of. Raises InvalidRequest where they are of several."""
    named = {kind.example: kind for kind in http_kinds().values()}
    first = named[type(support[0])] if support else next(iter(named.values()))
    for i, example in enumerate(support):
        if type(example) is not first.example:
            raise InvalidRequest(f"support[{i}]", f"an example of {first.name}, as support[0] is", named[type(example)].name)
    return first


def _one_of(models: dict[str, type[BaseModel]]) -> Any:
    if len(models) == 1:
        return next(iter(models.values()))

    def name_of(value: Any) -> str:
        """The first kind whose required fields are all there; the product's own first kind where none is."""
        fields = set(value) if isinstance(value, dict) else set(type(value).model_fields) if isinstance(value, BaseModel) else set()
        return next((name for name, model in models.items() if _required(model) <= fields), next(iter(models)))

    tagged = tuple(Annotated[model, Tag(name)] for name, model in models.items())
    return Annotated[Union[tagged], Discriminator(name_of)]  # noqa: UP007


def _required(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if field.is_required()}
