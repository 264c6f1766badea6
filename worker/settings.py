"""Settings of a worker, from the environment, read once. Torch-free; the service builds on them."""

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.errors import SettingsError
from worker.ledger.servers import for_records, for_weights
from worker.logs import LogFormat

_FORMS = "redis://…, rediss://…, unix://… or redis+sentinel://host:port,…/SERVICE"


def _records_url(url: str) -> str:
    if not for_records(url):
        raise ValueError(f"expected {_FORMS}")
    return url


def _weights_url(url: str) -> str:
    if not for_weights(url):
        raise ValueError(f"expected {_FORMS}, or redis+cluster://host:port,…")
    return url


def _base_models(names: str) -> str:
    each = [name.strip() for name in names.split(",")]
    if not all(each) or len(set(each)) < len(each):
        raise ValueError("expected one name or several different ones, separated by commas")
    return names


BaseModels = Annotated[str, AfterValidator(_base_models)]
RecordsUrl = Annotated[str, AfterValidator(_records_url)]
WeightsUrl = Annotated[str, AfterValidator(_weights_url)]
S = TypeVar("S", bound=BaseSettings)


class WorkerSettings(BaseSettings):
    """Each field is the environment variable of its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    redis_url: RecordsUrl = Field(default="redis://localhost:6379/0", description="queue and records; must not evict")
    cache_url: WeightsUrl | None = Field(default=None, description="adapter weights; REDIS_URL where unset")
    wait_replicas: int = Field(
        default=0, ge=0, description="replicas that must have a new record before its 202; 1 or more behind Sentinel"
    )
    base_model: BaseModels = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="one or several, separated by commas: hub names, local paths (with a slash) or short names",
    )
    hub_token_file: Path | None = Field(default=None, description="file with a token of the model hub, for models not public")
    air_gapped: bool = Field(default=False, description="never ask the model hub: a folder, a wheel or its cache has the model")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: LogFormat = "text"
    initializations_dir: Path | None = Field(default=None, description="folder of further initialization folders")
    threads: int | None = Field(default=None, ge=1, description="CPU threads for the maths; one a core where unset")
    lease_seconds: int = Field(default=4, ge=2, description="how long a silent worker keeps a job")
    attempts: int = Field(default=3, ge=1, description="workers a job may cost before it fails")
    jobs_together: int = Field(default=8, ge=1, description="most jobs of one pass")
    pass_rows: int = Field(default=256, ge=1, description="most examples of one pass of several jobs")
    job_seconds: float = Field(default=120, gt=0, description="deadline of one inner loop")
    erase_seconds: float = Field(
        default=30, ge=0, description="after a deletion, until the append-only file is written anew without it"
    )
    drain_seconds: float = Field(default=5, ge=0, description="how long a worker that is told to stop goes on with its job")

    @property
    def base_models(self) -> tuple[str, ...]:
        """The base models in the order of their names; the first is the one that a request gets if several fit."""
        return tuple(name.strip() for name in self.base_model.split(","))

    @property
    def weights_url(self) -> str:
        return self.cache_url or self.redis_url

    @property
    def hub_token(self) -> str | None:
        """What HUB_TOKEN_FILE holds; not a field, so that it is in no account of the settings. Raises SettingsError."""
        if self.hub_token_file is None:
            return None
        try:
            token = self.hub_token_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise SettingsError(f"HUB_TOKEN_FILE: {self.hub_token_file} cannot be read: {type(error).__name__}") from None
        if not token or not token.isascii() or not token.isprintable():
            raise SettingsError(f"HUB_TOKEN_FILE: expected one line with a token in {self.hub_token_file}")
        return token


def read_settings(kind: type[S]) -> S:
    """Raises SettingsError, one line that names the variable, what was expected and what came."""
    try:
        return kind()
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]).upper()
        got = re.sub(r"//.*@", "//…@", str(problem["input"]))  # a URL may have a password
        raise SettingsError(f"{name}: {problem['msg'].removeprefix('Value error, ')}, got {got[:80]!r}") from None
