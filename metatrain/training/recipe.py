"""Recipes: YAML files that describe training runs.

Error messages name the key, the expected value and the given value.
"""

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, model_validator
from quickstudy.one_line import shown, shown_path

from metatrain.deltas import DeltaConfig, LoRAConfig
from metatrain.errors import DataError, RecipeError, first_line
from metatrain.inner.config import InnerConfig
from metatrain.meta.algorithms import AlgorithmSection
from metatrain.models.precision import Precision
from metatrain.models.source import DEFAULT_MODEL
from metatrain.options import Section, refuse_unused, with_fixed
from metatrain.pydantic_errors import first_problem
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.readers import Columns, read_source
from metatrain.training.outer_step import OuterConfig
from metatrain.training.yaml_file import read_yaml


def _rising(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("expected [least, most]")
    return bounds


Range = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_rising)]
"""[least, most], both included."""

VERSION: Literal[2] = 2
"""The version of the recipe format. A checkpoint of another version is not resumed.

Version 1 had other defaults; `metatrain upgrade` converts its recipes.
"""
_ALGORITHM: TypeAdapter[Any] = TypeAdapter(AlgorithmSection)


def _options(section: Any) -> dict[str, Any]:
    """Return the options that are set explicitly in `section`, a dict or a model.

    Raises TypeError if it is neither.
    """
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in section.model_fields_set}
    if not isinstance(section, dict):
        raise TypeError
    return dict(section)


class ClassList(Section):
    """A reference to one list of labels in a JSON file of the form {id: {part: [labels]}}."""

    file: str
    id: str
    part: str

    def labels(self, data: Path) -> list[str]:
        """Return the listed labels. Raises DataError if the file or the list is missing or malformed."""
        path = data / self.file
        if not path.is_file():
            raise DataError(f"data: no split file at {path}")
        try:
            splits = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON: {getattr(error, 'msg', None) or first_line(error)}") from error
        parts = splits.get(self.id) if isinstance(splits, dict) else None
        listed = parts.get(self.part) if isinstance(parts, dict) else None
        if listed is None:
            raise DataError(f"{path}: no split {self.id!r} with part {self.part!r}")
        if not isinstance(listed, list) or not all(type(label) in (str, int) for label in listed):
            got = "a list with other values" if isinstance(listed, list) else shown(listed)
            raise DataError(f"{path}: split {self.id!r}, part {self.part!r}: expected a list of labels, got {got}")
        return [str(label) for label in listed]


class Source(Section):
    """A source of labelled examples.

    `path`: a file under the data folder (CSV, TSV, JSON Lines or a JSON array), `starter` for the task set that ships with the
    package, or `hub:NAME` for a data set of the Hugging Face hub. `split`: keep only the classes that a split file lists. `labels`:
    keep only the classes that match one of these shell patterns; empty for all classes.
    """

    path: str
    split: ClassList | None = None
    labels: tuple[str, ...] = ()
    columns: Columns = Columns()

    def read(self, data: Path) -> Dataset:
        dataset = read_source(self.path, data, self.columns)
        if self.split is not None:
            dataset = dataset.only(self.split.labels(data))
        if self.labels:
            matched: set[str] = set()
            for pattern in self.labels:
                matches = {label for label in dataset.texts if fnmatch.fnmatchcase(label, pattern)}
                if not matches:
                    raise DataError(f"data: {self.path}: labels: none matches {pattern!r}; it has {dataset.some_labels}")
                matched |= matches
            dataset = dataset.only([label for label in dataset.texts if label in matched])
        return dataset


class BaseSection(Section):
    model: str = DEFAULT_MODEL
    precision: Precision = "float32"
    max_length: int | None = Field(default=None, ge=8)
    train_max_length: int | None = Field(default=None, ge=8, description="cut training texts to this many tokens")
    updated: tuple[str, ...] = Field(
        default=(), description="shell patterns of the names of parameters that the outer loop moves too, for all tasks"
    )


class StartSection(Section):
    """The initial values of the parameters that meta-training learns.

    `b_std`: the standard deviation of LoRA's B, B ~ N(0, b_std²). `rate`, `head_rate`: the inner learning rates of the delta and of
    the head. `scale`: s, the inverse temperature.
    """

    b_std: float = Field(default=0.01, ge=0)
    rate: float = Field(default=3e-3, gt=0)
    head_rate: float = Field(default=3e-3, gt=0)
    rates_by_step: bool = Field(default=False, description="learn a rate for each leaf and step instead of each leaf")
    scale: float = Field(default=16.0, gt=0)


class DataSection(Section):
    train: tuple[Source, ...] = Field(min_length=1)
    valid: tuple[Source, ...] = Field(min_length=1)
    held_out: tuple[Source, ...] = Field(
        default=(), description="never trained on; equal texts and classes are dropped from training even under other names"
    )
    attribution: str = ""


class EpisodesSection(Section):
    ways: Range = (5, 5)
    shots: Range = (1, 5)
    queries: int = Field(default=5, ge=1)
    temperature: float = Field(default=0.5, ge=0, le=1)
    near_miss: float = Field(default=0.0, ge=0, le=1, description="share of episodes whose classes are similar")
    merge: float = Field(default=0.0, ge=0, le=1, description="share of episodes whose labels are unions of two classes")
    unequal: float = Field(default=0.5, ge=0, le=1, description="share of episodes whose classes have unequal numbers of shots")
    rows: int = Field(default=400, ge=4, description="largest number of rows of a task, support and queries together")

    @model_validator(mode="after")
    def _smallest_fits(self) -> "EpisodesSection":
        least = self.ways[0] * (self.shots[0] + self.queries)
        if least > self.rows:
            raise ValueError(f"rows: expected at least {least}, the rows of the smallest task, got {self.rows}")
        return self


class ValidationSection(Section):
    every: int = Field(default=50, ge=1)
    episodes: int = Field(default=40, ge=2, description="episodes for each number of shots")
    ways: int = Field(default=5, ge=2)
    shots: tuple[int, ...] = Field(default=(1, 5), min_length=1)
    patience: int = Field(default=5, ge=1, description="validations without a new best score before training stops")


class Recipe(Section):
    """The configuration of a training run, as read from a YAML file.

    An option that is left out has the value of the algorithm's paper (`Algorithm.defaults`) or, if there is none, the field's
    default. Raises ValidationError for an invalid value, and for an option that has no effect with this algorithm or with the other
    options.
    """

    version: Literal[2] = VERSION
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    seed: int = Field(default=0, ge=0)
    base: BaseSection = BaseSection()
    delta: DeltaConfig = LoRAConfig()
    algorithm: AlgorithmSection
    inner: InnerConfig = InnerConfig()
    start: StartSection = StartSection()
    data: DataSection
    episodes: EpisodesSection = EpisodesSection()
    outer: OuterConfig = OuterConfig()
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="before")
    @classmethod
    def _with_the_algorithms_settings(cls, given: Any) -> Any:
        """Fill in the settings of the algorithm's paper, and the options that the algorithm prescribes."""
        try:
            algorithm = _ALGORITHM.validate_python(given["algorithm"])
            sections = {name: _options(given[name]) for name in ("inner", "start", "outer") if name in given}
        except (ValidationError, TypeError, KeyError):
            return given  # the validation of the fields raises the error
        defaults = {name: dict(options) for name, options in algorithm.defaults.items()}
        if {"steps", "steps_by_shots"} & sections.get(
            "inner", {}
        ).keys():  # they belong together: if the recipe sets one of them, it replaces both defaults
            for option in ("steps", "steps_by_shots"):
                defaults.get("inner", {}).pop(option, None)
        for name, options in defaults.items():
            sections[name] = {**options, **sections.get(name, {})}
        return {**given, **with_fixed(sections, algorithm.fixed, algorithm.name)}

    @model_validator(mode="after")
    def _no_choice_leaves_an_option_unused(self) -> "Recipe":
        refuse_unused(self.inner)
        unused: list[tuple[str, str, str]] = []
        if not {"rates", "scale"} & set(self.algorithm.learned):
            unused.append(("outer", "rate_learning_rate", "algorithm.learned has neither rates nor scale"))
        if not self.base.updated:
            unused.append(("outer", "base_learning_rate", "base.updated is empty"))
        if not self.delta.has_leaves:
            unused += [("start", name, f"a delta of kind {self.delta.kind} has no leaves") for name in ("b_std", "rate")]
        for section, option, why in unused:
            model = getattr(self, section)
            if getattr(model, option) != type(model).model_fields[option].default:
                raise ValueError(f"{section}.{option}: not used, because {why}; leave it out")
        return self

    @model_validator(mode="after")
    def _steps_are_used(self) -> "Recipe":
        inner = self.inner
        if "steps" in inner.model_fields_set and 1 in inner.steps_by_shots and inner.steps not in inner.steps_by_shots.values():
            raise ValueError(
                f"inner.steps: {inner.steps} is never taken, because steps_by_shots covers all shots; expected one of its numbers"
            )
        return self

    @model_validator(mode="after")
    def _base_update_is_possible(self) -> "Recipe":
        if self.base.updated and not self.algorithm.moves_base:
            name = self.algorithm.name
            raise ValueError(f"base.updated: expected nothing with {name}, which moves only what the inner loop moves")
        return self

    @model_validator(mode="after")
    def _inner_loop_fits(self) -> "Recipe":
        if not self.delta.has_leaves and not self.inner.moves_head_alone and self.inner.most_steps:
            raise ValueError(
                f'inner.moved: a delta of kind "{self.delta.kind}" has nothing else to move; '
                f'expected "head", got "{self.inner.moved}"'
            )
        self.algorithm.check(self.inner)
        return self

    @property
    def digest(self) -> str:
        """The digest of the recipe's version and of all options that differ from their defaults.

        Options that a later release adds do not change it, as long as they have their defaults.
        """
        content = [self.version, self.algorithm.name, self.delta.kind, self.model_dump(mode="json", exclude_defaults=True)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises RecipeError if the file is missing, not YAML or invalid, or has another version.
    """
    content = read_yaml(path, "recipe")
    if isinstance(content, dict) and content.get("version") != VERSION:
        got = repr(content["version"]) if "version" in content else "none"
        raise RecipeError(
            f"{path}: version: expected {VERSION}, got {got}; a recipe without a version is of version 1: "
            f"`metatrain upgrade {path}` prints it in version {VERSION}"
        )
    return validated(content, path, Recipe)


Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, model: type[Model], what: str) -> Model:
    """Read a YAML file and validate it as `model`.

    Raises RecipeError if the file is missing, not YAML or invalid. For an invalid file the message is one line that names the key,
    the expected value and the given value. `what`: the kind of file; it appears only in the message.
    """
    return validated(read_yaml(path, what), path, model)


def validated(content: Any, path: Path, model: type[Model]) -> Model:
    """Validate `content`, which was read from `path`, as `model`. Raises RecipeError if it is invalid."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{shown_path(path)}: {first_problem(error, model)}") from error
