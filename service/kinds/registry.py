"""The registry of the task kinds that the HTTP service supports.

To add a kind, write a file in this folder and a line here, or register an entry point in another package.
"""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Union

from pydantic import BaseModel, Discriminator, Tag

from metatrain.errors import PluginError
from metatrain.plugins import by_own_name, with_installed
from service.errors import InvalidRequest
from service.kinds.kind import HttpKind
from service.kinds.text_classification import TextClassification
from worker.kinds.registry import task_kinds

ENTRY_POINTS = "quickstudy.http_kinds"
_BUILT_IN: dict[str, HttpKind] = {kind.name: kind for kind in (TextClassification(),)}


@cache
def http_kinds() -> dict[str, HttpKind]:
    """Return the built-in kinds and the kinds of installed packages, by name.

    Packages register kinds as entry points of the group `quickstudy.http_kinds`. Raises PluginError if no worker could run a kind,
    because `quickstudy.task_kinds` has none of the same name. Also raises it if two kinds use the same model for their examples,
    because then an example could not select its kind.
    """
    kinds: dict[str, HttpKind] = with_installed(_BUILT_IN, ENTRY_POINTS, HttpKind, by_own_name)
    by_example: dict[type[BaseModel], str] = {}
    for name, kind in kinds.items():
        if name not in task_kinds():
            raise PluginError(f"{ENTRY_POINTS}: {name}: expected a task kind of the same name in quickstudy.task_kinds, got none")
        other = by_example.setdefault(kind.example, name)
        if other != name:
            raise PluginError(f"{ENTRY_POINTS}: {name}: expected a model of its own for examples, got that of {other}")
    return kinds


def example_type() -> Any:
    """Return the type of one example in a body.

    If there are several kinds, it is a union, and the fields of an example select the kind.
    """
    return _one_of({kind.name: kind.example for kind in http_kinds().values()})


def prediction_type() -> Any:
    """Return the type of the answer to one input: a union if there are several kinds."""
    models = [kind.prediction for kind in http_kinds().values()]
    return models[0] if len(models) == 1 else Union[tuple(models)]  # noqa: UP007  (the number of members is known only at run time)


def kind_of(support: Sequence[BaseModel]) -> HttpKind:
    """Return the task kind of a support set, whose examples are already parsed.

    An empty support set has the first kind of the registry. Raises InvalidRequest if the examples belong to several kinds.
    """
    by_model = {kind.example: kind for kind in http_kinds().values()}
    first = by_model[type(support[0])] if support else next(iter(by_model.values()))
    for i, example in enumerate(support):
        if type(example) is not first.example:
            raise InvalidRequest(f"support[{i}]", f"an example of {first.name}, as support[0] is", by_model[type(example)].name)
    return first


def _one_of(models: dict[str, type[BaseModel]]) -> Any:
    if len(models) == 1:
        return next(iter(models.values()))

    def name_of(value: Any) -> str:
        """Return the name of the first kind whose required fields `value` has.

        If there is no such kind, returns the name of the first kind of the registry.
        """
        fields = set(value) if isinstance(value, dict) else set(type(value).model_fields) if isinstance(value, BaseModel) else set()
        return next((name for name, model in models.items() if _required(model) <= fields), next(iter(models)))

    tagged = tuple(Annotated[model, Tag(name)] for name, model in models.items())
    return Annotated[Union[tagged], Discriminator(name_of)]  # noqa: UP007


def _required(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if field.is_required()}
