"""One-line messages for pydantic validation errors."""

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_MOST = 60
"""The largest number of characters of a key in a message."""


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a one-line message for the most useful problem in `error`, a validation error of `model`.

    The message states the key, the expected value and the given value.
    """
    # A misspelt key also makes the right key missing. The misspelt one is what the user has to correct.
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = ".".join(_keys(problem["loc"])) or "document"
    if problem["type"] == "union_tag_invalid":
        tags, key = problem["ctx"]["expected_tags"], problem["ctx"]["discriminator"].strip("'")
        key = key if key.isidentifier() and not key.startswith("_") else "kind"
        return f"{where}.{key}: expected one of {tags}, got {problem['ctx']['tag']!r}"
    if problem["type"] == "value_error":  # raised by a validator of this product, whose message already says what came
        message = str(problem["ctx"]["error"])
        return f"{where}: {message}" if problem["loc"] else message
    if problem["type"] == "extra_forbidden":
        return f"{where}: no such key; expected one of {', '.join(_allowed_keys(model, problem['loc']))}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: expected keys and values, got {str(problem['input'])[:80]!r}"
    return f"{where}: {problem['msg']}, got {str(problem['input'])[:80]!r}"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """Return the path of keys `loc` as in the file: without the kinds that pydantic inserts for unions."""
    return (
        [str(part)[:_MOST] for i, part in enumerate(loc) if not (i and loc[i - 1] in ("algorithm", "delta"))]
        if len(loc) > 2
        else [str(part)[:_MOST] for part in loc]
    )


def _allowed_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys of the section of `model` that contains the last key of `loc`.

    Each part of `loc` is a key, an index of a list, or the kind that pydantic inserts for a tagged union.
    """
    models = [model]
    for part in loc[:-1]:
        inside = [each for one in models if part in one.model_fields for each in _models(one.model_fields[str(part)].annotation)]
        of_kind = [one for one in models if any(field.default == part for field in one.model_fields.values())]
        models = inside or of_kind or models
    return sorted({key for one in models for key in one.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
