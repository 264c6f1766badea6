"""Reject options that would have no effect, in all configuration classes.

An option can have no effect for two reasons. First, it may be used only with certain values of another option in the same section:
`segment` is used only with the mode "checkpointed". Such fields are marked with `UsedWith`. Second, another section may prescribe
its value: ProtoNet takes no inner step, so it sets `inner.steps` to 0. A section lists the values that it prescribes in `fixed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

Fixed = Mapping[str, Mapping[str, Any]]
"""Options of other sections and the values that are set for them: {section: {option: value}}."""


@dataclass(frozen=True)
class UsedWith:
    """Marks a field that is used only if another field, `beside`, has one of `values`.

    `beside`: the name of the other field, which is in the same section. Put the mark into the field's annotation:

    segment: Annotated[int, UsedWith("mode", "checkpointed")] = 2
    """

    beside: str
    values: tuple[Any, ...]

    def __init__(self, beside: str, *values: Any) -> None:
        object.__setattr__(self, "beside", beside)
        object.__setattr__(self, "values", values)


class Section(BaseModel):
    """A frozen configuration that rejects unknown keys, and options that are set but have no effect.

    An option has no effect if it is marked with `UsedWith`, and the option named in the mark has none of the required values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _no_option_is_ignored(self) -> Self:
        refuse_unused(self)
        return self


def refuse_unused(section: BaseModel) -> None:
    """Raise ValueError if a field is set although its mark `UsedWith` says that it has no effect.

    A field counts as set if its value differs from its default.
    """
    for name, field in type(section).model_fields.items():
        for mark in field.metadata:
            if not isinstance(mark, UsedWith) or getattr(section, mark.beside) in mark.values:
                continue
            if getattr(section, name) != field.get_default(call_default_factory=True):
                needed = " or ".join(map(str, mark.values))
                raise ValueError(
                    f"{name}: used only with {mark.beside} {needed}, got {mark.beside} {getattr(section, mark.beside)}"
                )


def with_fixed(given: Mapping[str, Mapping[str, Any]], fixed: Fixed, by: str) -> dict[str, dict[str, Any]]:
    """Return `given`, {section: {option: value}}, with the options of `fixed` added.

    Raises ValueError if `given` contains another value for one of these options. `by`: the name of the algorithm or section that
    prescribes them; it appears only in the error message.
    """
    merged = {section: dict(options) for section, options in given.items()}
    for section, options in fixed.items():
        target = merged.setdefault(section, {})
        for name, value in options.items():
            if name in target and target[name] != value:
                raise ValueError(f"{section}.{name}: {by} sets it to {value!r}, got {target[name]!r}; leave it out")
            target[name] = value
    return merged
