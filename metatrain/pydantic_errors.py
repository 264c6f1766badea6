"""What pydantic found wrong with a file, in one line."""

from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def first_problem(error: ValidationError, of: type[BaseModel]) -> str:
    """One line of a pydantic error about `of`: the key, what was expected, what came."""
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")  # a key misspelt before the one it then lacks
    where = ".".join(_keys(problem["loc"])) or "document"
    if problem["type"] == "union_tag_invalid":
        tags, key = problem["ctx"]["expected_tags"], problem["ctx"]["discriminator"].strip("'")
        key = key if key.isidentifier() and not key.startswith("_") else "kind"
        return f"{where}.{key}: expected one of {tags}, got {problem['ctx']['tag']!r}"
    if problem["type"] == "value_error":  # ours, and says itself what came
        said = str(problem["ctx"]["error"])
        return f"{where}: {said}" if problem["loc"] else said
    if problem["type"] == "extra_forbidden":
        return f"{where}: no such key; expected one of {', '.join(_keys_beside(of, problem['loc']))}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: expected keys and values, got {str(problem['input'])[:80]!r}"
    return f"{where}: {problem['msg']}, got {str(problem['input'])[:80]!r}"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys as they stand in a file: of a section that is one of several kinds, pydantic names the kind too."""
    return (
        [str(part) for i, part in enumerate(loc) if not (i and loc[i - 1] in ("algorithm", "delta"))]
        if len(loc) > 2
        else list(map(str, loc))
    )


def _keys_beside(of: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that `loc` ends in. Of a section that is one of several kinds, `loc` names the kind too."""
    models = [of]
    for step in loc[:-1]:
        inside = [
            each for model in models if step in model.model_fields for each in _models(model.model_fields[str(step)].annotation)
        ]
        of_kind = [model for model in models if any(field.default == step for field in model.model_fields.values())]
        models = inside or of_kind or models
    return sorted({key for model in models for key in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
