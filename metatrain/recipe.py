"""A training run as a file: every key is checked, and an error names the key and the value."""

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from metatrain.artifact import first_problem
from metatrain.base.precision import Precision
from metatrain.base.source import DEFAULT_MODEL
from metatrain.data.jsonl import STARTER, read_jsonl
from metatrain.deltas import LoRAConfig
from metatrain.episode import Dataset
from metatrain.errors import DataError, RecipeError
from metatrain.inner import InnerConfig


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _rising(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("expected [least, most]")
    return bounds


Range = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_rising)]


class Split(_Section):
    """Labels listed in a JSON file as {id: {part: [labels]}}."""

    file: str
    id: str
    part: str


class Source(_Section):
    """Labelled examples: `path` under the data folder, or `starter` for the task set that ships with the package.

    `split` keeps the classes that a split file lists; `labels` keeps those that match one of the patterns.
    """

    path: str
    split: Split | None = None
    labels: tuple[str, ...] = ()

    def read(self, data: Path) -> Dataset:
        dataset = read_jsonl(STARTER if self.path == "starter" else data / self.path)
        if self.split is not None:
            path = data / self.split.file
            if not path.is_file():
                raise DataError(f"data: no split file at {path}")
            try:
                labels = json.loads(path.read_bytes())[self.split.id][self.split.part]
            except KeyError as error:
                raise DataError(f"{path}: no split {self.split.id!r} with part {self.split.part!r}") from error
            dataset = dataset.only(labels)
        if self.labels:
            matched = [label for label in dataset.texts if any(fnmatch.fnmatchcase(label, p) for p in self.labels)]
            if not matched:
                raise DataError(f"{self.path}: no label matches {', '.join(self.labels)}")
            dataset = dataset.only(matched)
        return dataset


class BaseSection(_Section):
    model: str = DEFAULT_MODEL
    precision: Precision = "float32"
    max_length: int | None = Field(default=None, ge=8)
    train_max_length: int | None = Field(default=None, ge=8, description="cut training texts to this many tokens")


class AlgorithmSection(_Section):
    name: Literal["maml", "protonet"]
    order: Literal["first", "second"] = Field(default="first", description="of MAML's meta-gradient: first is FOMAML")


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


class OuterSection(_Section):
    steps: int = Field(default=400, ge=1)
    tasks: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    rate_learning_rate: float = Field(default=1e-2, gt=0, description="of log α and log s")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the meta-gradient for θ")
    warmup: int = Field(default=20, ge=0)
    anchor: float = Field(default=0.0, ge=0, description="weight of the adapted features' distance from the base model's")


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
    delta: LoRAConfig = LoRAConfig()
    algorithm: AlgorithmSection
    inner: InnerConfig = InnerConfig()
    start: StartSection = StartSection()
    data: DataSection
    episodes: EpisodesSection = EpisodesSection()
    outer: OuterSection = OuterSection()
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _steps_are_taken(self) -> "Recipe":
        inner = self.inner
        if "steps" in inner.model_fields_set and 1 in inner.steps_by_shots and inner.steps not in inner.steps_by_shots.values():
            raise ValueError(
                f"inner.steps: {inner.steps} is never taken, for steps_by_shots covers all shots; expected one of its numbers"
            )
        return self

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


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
        raise RecipeError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(error)}") from error
