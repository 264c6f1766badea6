"""A training run as a file: every key is checked, and an error names the key and the value."""

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from metatrain.deltas import DeltaConfig, LoRAConfig
from metatrain.errors import DataError, RecipeError
from metatrain.inner.config import InnerConfig
from metatrain.meta.algorithms import AlgorithmSection
from metatrain.models.precision import Precision
from metatrain.models.source import DEFAULT_MODEL
from metatrain.pydantic_errors import first_problem
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.readers import Columns, read_source
from metatrain.training.outer_step import OuterConfig


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _rising(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("expected [least, most]")
    return bounds


Range = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_rising)]


class ClassList(_Section):
    """Labels listed in a JSON file as {id: {part: [labels]}}."""

    file: str
    id: str
    part: str

    def labels(self, data: Path) -> list[str]:
        """The classes that are listed. Raises DataError where the file or the list is not there."""
        path = data / self.file
        if not path.is_file():
            raise DataError(f"data: no split file at {path}")
        try:
            return [str(label) for label in json.loads(path.read_bytes())[self.id][self.part]]
        except KeyError as error:
            raise DataError(f"{path}: no split {self.id!r} with part {self.part!r}") from error


class Source(_Section):
    """Labelled examples: `path` under the data folder (JSON Lines; CSV or TSV by its ending), `starter` for the task set that ships
    with the package, or `hub:NAME` for a data set of the Hugging Face hub.

    `split` keeps the classes that a split file lists; `labels` keeps those that match one of the patterns.
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
                own = {label for label in dataset.texts if fnmatch.fnmatchcase(label, pattern)}
                if not own:
                    raise DataError(f"data: {self.path}: labels: none matches {pattern!r}; it has {dataset.some_labels}")
                matched |= own
            dataset = dataset.only([label for label in dataset.texts if label in matched])
        return dataset


class BaseSection(_Section):
    model: str = DEFAULT_MODEL
    precision: Precision = "float32"
    max_length: int | None = Field(default=None, ge=8)
    train_max_length: int | None = Field(default=None, ge=8, description="cut training texts to this many tokens")
    updated: tuple[str, ...] = Field(
        default=(), description="parameters, by shell patterns of their names, that the outer loop moves too, all tasks alike"
    )


class StartSection(_Section):
    """Where meta-training starts: B ~ N(0, b_std²), one rate for the delta's leaves and one for the head's, and s."""

    b_std: float = Field(default=0.01, ge=0)
    rate: float = Field(default=3e-3, gt=0)
    head_rate: float = Field(default=3e-3, gt=0)
    rates_by_step: bool = Field(default=False, description="learn a rate for each leaf and step instead of each leaf")
    scale: float = Field(default=16.0, gt=0)


class DataSection(_Section):
    train: tuple[Source, ...] = Field(min_length=1)
    valid: tuple[Source, ...] = Field(min_length=1)
    held_out: tuple[Source, ...] = Field(default=(), description="never trained on, not even a text or a class under another name")
    attribution: str = ""


class EpisodesSection(_Section):
    ways: Range = (5, 5)
    shots: Range = (1, 5)
    queries: int = Field(default=5, ge=1)
    temperature: float = Field(default=0.5, ge=0, le=1)
    near_miss: float = Field(default=0.0, ge=0, le=1, description="share of episodes whose classes are neighbours")
    merge: float = Field(default=0.0, ge=0, le=1, description="share of episodes whose labels stand for two classes each")
    rows: int = Field(default=400, ge=4, description="most rows of a meta-batch; small tasks go up to outer.tasks at once")

    @model_validator(mode="after")
    def _smallest_fits(self) -> "EpisodesSection":
        least = self.ways[0] * (self.shots[0] + self.queries)
        if least > self.rows:
            raise ValueError(f"rows: the smallest task has {least} rows, expected at most {self.rows}")
        return self


class ValidationSection(_Section):
    every: int = Field(default=50, ge=1)
    episodes: int = Field(default=40, ge=2, description="per number of shots")
    ways: int = Field(default=5, ge=2)
    shots: tuple[int, ...] = Field(default=(1, 5), min_length=1)
    patience: int = Field(default=5, ge=1, description="validations without a new best before stopping")


class Recipe(_Section):
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

    @model_validator(mode="after")
    def _steps_are_taken(self) -> "Recipe":
        inner = self.inner
        if "steps" in inner.model_fields_set and 1 in inner.steps_by_shots and inner.steps not in inner.steps_by_shots.values():
            raise ValueError(
                f"inner.steps: {inner.steps} is never taken, for steps_by_shots covers all shots; expected one of its numbers"
            )
        return self

    @model_validator(mode="after")
    def _base_is_moved(self) -> "Recipe":
        if self.base.updated and not self.algorithm.moves_base:
            name = self.algorithm.name
            raise ValueError(f"base.updated: expected nothing with {name}, which moves only what the inner loop moves")
        return self

    @model_validator(mode="after")
    def _inner_loop_fits(self) -> "Recipe":
        try:
            inner = self.recorded_inner
        except ValidationError as error:
            raise ValueError(f"inner, as {self.algorithm.name} takes it: {first_problem(error, InnerConfig)}") from None
        if not self.delta.has_leaves and inner.moved != "head" and inner.most_steps:
            raise ValueError(
                f'inner.moved: a delta of kind "{self.delta.kind}" has nothing else to move; expected "head", got "{inner.moved}"'
            )
        return self

    @property
    def recorded_inner(self) -> InnerConfig:
        """The inner loop as the initialization records it: what the algorithm makes of `inner`."""
        return InnerConfig.model_validate({**self.inner.model_dump(), **self.algorithm.inner_entries})

    @property
    def digest(self) -> str:
        """Of what is not at its default, so that keys that come later leave the digests of older recipes alone."""
        own = [self.algorithm.name, self.delta.kind, self.model_dump(mode="json", exclude_defaults=True)]
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """A training run. Raises RecipeError as `read_model`."""
    return read_model(path, Recipe, "recipe")


Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, model: type[Model], what: str) -> Model:
    """A YAML file as `model`. Raises RecipeError, one line that names the key, what was expected and what came."""
    if not path.is_file():
        raise RecipeError(f"no {what} at {path}")
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(error, model)}") from error
