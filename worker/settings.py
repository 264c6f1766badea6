"""The settings of a worker, read once from environment variables.

The settings of the service are a subclass. Torch-free.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from metatrain.models.source import locate_locally
from worker.errors import InvalidKeyFile, SettingsError
from worker.ledger.encryption import PLAIN, Cipher, read_key_file
from worker.ledger.servers import is_records_url, is_weights_url, with_password
from worker.logs import LogFormat

_URL_FORMS = "redis://…, rediss://…, unix://… or redis+sentinel://host:port,…/SERVICE"


def _records_url(url: str) -> str:
    if not is_records_url(url):
        raise ValueError(f"expected {_URL_FORMS}")
    return url


def _weights_url(url: str) -> str:
    if not is_weights_url(url):
        raise ValueError(f"expected {_URL_FORMS}, or redis+cluster://host:port,…")
    return url


def _base_models(names: str) -> str:
    each = [name.strip() for name in names.split(",")]
    if not all(each) or len(set(each)) < len(each):
        raise ValueError("expected one name or several different ones, separated by commas")
    return names


BaseModels = Annotated[str, AfterValidator(_base_models)]
RecordsUrl = Annotated[str, AfterValidator(_records_url)]
WeightsUrl = Annotated[str, AfterValidator(_weights_url)]


class WorkerSettings(BaseSettings):
    """The settings of a worker, read from environment variables.

    The variable of a field has the field's name in capitals: `redis_url` is read from REDIS_URL.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    redis_url: RecordsUrl = Field(
        default="redis://localhost:6379/0",
        description="server of the queue and the records; it must not evict keys. "
        "If unset, `quickstudy serve` starts an embedded server",
    )
    cache_url: WeightsUrl | None = Field(
        default=None, description="server or cluster of the adapter weights; unset: the one of REDIS_URL"
    )
    redis_password_file: Path | None = Field(
        default=None,
        description="file with the password of the Redis servers: for REDIS_URL and CACHE_URL, unless they contain one",
    )
    wait_replicas: int = Field(
        default=0,
        ge=0,
        description="number of replicas that must have a new record before the 202 is sent; behind Sentinel, set 1 or more",
    )
    base_model: BaseModels = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="one base model or several, separated by commas: hub names, folders (with a slash) or the short name `text`",
    )
    hub_token_file: Path | None = Field(default=None, description="file with a token of the model hub, for private models")
    encryption_key_file: Path | None = Field(
        default=None,
        description="file of the keys that encrypt what is derived from examples, before it is written to Redis; unset: it is "
        "written as it is",
    )
    air_gapped: bool = Field(
        default=False, description="never contact the model hub: load base models from folders, wheels or the hub's local cache"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="arithmetic of the base models; `auto` is bfloat16 on CPUs with AMX or AVX-512 BF16 and on GPUs that have it, "
        "otherwise float32",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least severe level that is logged")
    log_format: LogFormat = Field(default="text", description="format of log lines; `json`: one object in each line")
    initializations_dir: Path | None = Field(default=None, description="folder that holds further initialization folders")
    threads: int | None = Field(default=None, ge=1, description="CPU threads for tensor operations; if unset, one per core")
    lease_seconds: int = Field(default=4, ge=2, description="how long a worker keeps a job without sending a heartbeat, in seconds")
    attempts: int = Field(default=3, ge=1, description="number of attempts after which an unfinished job fails")
    jobs_together: int = Field(default=8, ge=1, description="largest number of jobs in one pass")
    pass_rows: int = Field(default=256, ge=1, description="largest number of examples in one pass of several jobs")
    job_seconds: float = Field(default=120, gt=0, description="deadline of one inner loop, in seconds; the job fails after it")
    hang_seconds: float = Field(
        default=30,
        gt=0,
        description="how long a worker that hangs may exceed the limit of what it does before it ends itself, in seconds. "
        "The longest step of an inner loop must be shorter",
    )
    erase_seconds: float = Field(
        default=30,
        ge=0,
        description="delay after a deletion before the append-only file is rewritten without the deleted text, in seconds",
    )
    drain_seconds: float = Field(
        default=5, ge=0, description="how long a worker that is stopped continues with its jobs, in seconds"
    )

    @property
    def base_models(self) -> tuple[str, ...]:
        """The names of the base models, in the order of BASE_MODEL.

        If several base models fit a request, the first one is used.
        """
        return tuple(name.strip() for name in self.base_model.split(","))

    @property
    def weights_url(self) -> str:
        return self.cache_url or self.redis_url

    @property
    def hub_token(self) -> str | None:
        """The token in HUB_TOKEN_FILE. Raises SettingsError if the file cannot be read.

        It is not a field, so that printing the settings does not reveal it.
        """
        return None if self.hub_token_file is None else _secret(self.hub_token_file, "HUB_TOKEN_FILE", "a token")

    @property
    def cipher(self) -> Cipher:
        """A cipher with the keys in ENCRYPTION_KEY_FILE. Raises SettingsError if the file cannot be used.

        Each access reads the file, so a process keeps the cipher that it read at its start.
        """
        if self.encryption_key_file is None:
            return PLAIN
        try:
            return read_key_file(self.encryption_key_file)
        except InvalidKeyFile as error:
            raise SettingsError(f"ENCRYPTION_KEY_FILE: {error}") from None


S = TypeVar("S", bound=WorkerSettings)


def _secret(path: Path, setting: str, content: str) -> str:
    """Return the only line of a file. `content`: what it has to be, for messages, which never quote it.

    Raises SettingsError if the file cannot be read, or has other content than one line of printable ASCII characters.
    """
    try:
        secret = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{setting}: expected a readable file, got {type(error).__name__} for {path}") from None
    if not secret or not secret.isascii() or not secret.isprintable():
        raise SettingsError(f"{setting}: expected one line with {content} in {path}, got other content")
    return secret


def read_settings(kind: type[S]) -> S:
    """Read settings of the class `kind` from environment variables.

    The password in REDIS_PASSWORD_FILE becomes a part of `redis_url` and `cache_url`, unless they contain one. Raises SettingsError
    with a message of one line: the variable, the expected value and the given one.
    """
    try:
        return _with_redis_password(kind())
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]).upper()
        got = re.sub(r"//.*@", "//…@", str(problem["input"]))  # a URL may contain a password
        raise SettingsError(f"{name}: {problem['msg'].removeprefix('Value error, ')}, got {got[:80]!r}") from None


def _with_redis_password(settings: S) -> S:
    """Return the settings with the password of REDIS_PASSWORD_FILE in the URLs.

    Raises SettingsError if the file cannot be read.
    """
    if settings.redis_password_file is None:
        return settings
    password = _secret(settings.redis_password_file, "REDIS_PASSWORD_FILE", "a password")
    urls = {
        name: with_password(url, password) for name in ("redis_url", "cache_url") if (url := getattr(settings, name)) is not None
    }
    return settings.model_copy(update=urls)


def check_folders(settings: WorkerSettings) -> None:
    """Check that the folders named in the settings exist.

    Call it before importing PyTorch, which takes seconds. Raises BaseModelError if the folder of a base model does not exist, and
    SettingsError if the folder of initializations does not.
    """
    for name in settings.base_models:
        locate_locally(name)
    folder = settings.initializations_dir
    if folder is not None and not folder.is_dir():
        raise SettingsError(f"INITIALIZATIONS_DIR: expected a folder of initialization folders, got {str(folder)!r}")
