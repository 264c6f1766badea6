"""The base models in a worker's memory, their initializations, and the inner loops that run on them."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import torch

from metatrain.artifacts.adapter import Adapter, AdapterMetadata, adapter_to_bytes
from metatrain.artifacts.catalog import load_catalog, report_not_taken
from metatrain.artifacts.files import not_finite
from metatrain.artifacts.initialization import Initialization
from metatrain.deltas import DeltaConfig
from metatrain.errors import AdaptationError, DeadlineExceeded, MetatrainError, NonFinite, PluginError
from metatrain.inner.encoded import Encoded
from metatrain.inner.together import Ended, OnStep, adapt_each
from metatrain.models.base import Base
from metatrain.models.description import BaseDescription
from metatrain.models.loading import describe_base, load_base
from metatrain.models.source import Hub
from metatrain.readouts.registry import readout_kinds
from metatrain.serving.probe_cache import probe_delta
from worker.errors import SettingsError
from worker.initializations import KnownInitializations
from worker.kinds.kind import TaskKind
from worker.kinds.registry import task_kinds
from worker.ledger.messages import JOB_FORMATS, JobRecipe, earlier_queue_names, queue_name
from worker.settings import WorkerSettings


@dataclass(frozen=True)
class MadeAdapter:
    """The result of an inner loop: an adapter as bytes, its support losses and its timings."""

    content: bytes
    support_loss: tuple[float, ...]
    """The support loss before each inner step."""
    timings: dict[str, float]
    """Duration of each stage of the pass in milliseconds, by stage name."""
    steps_ms: tuple[float, ...]
    """Duration of each inner step that this job took, in milliseconds. All jobs of a pass share their steps."""
    label_words: tuple[bool, float | None] | None = None
    """With `label_words: "auto"`: whether the words of the labels were used, and their gain (`metatrain.readouts.label_words`).

    The gain is None if they could not be used.
    """


OnMade = Callable[[int, MadeAdapter | AdaptationError], None]
"""Called with the position of a job in its pass and its adapter or error, as soon as the job has taken its last step."""
B_co = TypeVar("B_co", bound=BaseDescription, covariant=True)


@dataclass(frozen=True)
class Resident(Generic[B_co]):
    """A base model, loaded or only described, and the initializations that belong to it, by name.

    `sealing_key`: the id of the key that encrypts new records, or "". `key_ids`: the ids of all keys of this process.
    """

    base: B_co
    initializations: dict[str, Initialization]
    sealing_key: str = ""
    key_ids: tuple[str, ...] = ()

    def queue(self, kind: str, job_format: int) -> str:
        """Return the queue of new jobs of a task kind and format on this base model."""
        return queue_name(self.base.digest, self.base.precision, kind, job_format, self.sealing_key)

    @property
    def queues(self) -> list[str]:
        """The queues of new jobs of all known task kinds and formats on this base model."""
        return [self.queue(kind, job_format) for job_format in JOB_FORMATS for kind in task_kinds()]

    @property
    def readable_queues(self) -> list[str]:
        """The queues of all jobs on this base model that this process can read, those of new jobs first.

        Their records are encrypted with any of its keys, or not at all.
        """
        others = [self.sealing_key, "", *self.key_ids]
        each = ((key, job_format, kind) for key in others for job_format in JOB_FORMATS for kind in task_kinds())
        queues = (queue_name(self.base.digest, self.base.precision, kind, job_format, key) for key, job_format, kind in each)
        return list(dict.fromkeys(queues))

    @property
    def earlier_queues(self) -> list[str]:
        """The queues in which earlier versions put jobs for this base model."""
        return earlier_queue_names(self.base.digest, self.base.spec.weights_sha256, self.base.precision)


class Runtime:
    """The loaded base models of one worker. `adapt` runs a job's recipe and returns its adapter as bytes.

    `known`: the initializations that its jobs may name.
    """

    def __init__(self, *residents: Resident[Base], stored: Callable[[str], bytes | None] = lambda digest: None) -> None:
        """Create a runtime of these base models.

        `stored`: returns the bytes of a stored initialization by its digest, or None if it is not stored.
        """
        self.residents, self.known = residents, known_initializations(residents, stored, probe=probe_delta)

    def load_initialization(self, recipe: JobRecipe) -> None:
        """Load the initialization of a job, unless it is in memory.

        Errors of the initialization itself are not raised here but by `adapt`. Raises redis.RedisError if it is stored and Redis
        cannot be reached.
        """
        with contextlib.suppress(MetatrainError):
            self.known.find(recipe.initialization_digest)

    def can_share_pass(self, recipe: JobRecipe) -> bool:
        """Return True if the job may run in one pass with other jobs that have the same pass key.

        A job must run alone if its support set is too large for one step, or if its initialization uses augmented views. Such a job
        draws random parts or views, and a pass has only one seed for them, while its jobs may have different seeds. Also returns
        False if this worker lacks the task kind or the initialization.
        """
        found = self.known.in_memory(recipe.initialization_digest)
        if found is None or recipe.kind not in task_kinds():
            return False
        _, init = found
        return init.inner.augmentation is None and recipe.rows <= init.inner.rows_per_step

    def adapt(self, recipe: JobRecipe, *, deadline: float = math.inf, on_step: OnStep | None = None) -> MadeAdapter:
        """Run the inner loop of one job. `deadline` is a value of `time.monotonic()`.

        Raises AdaptationError if this worker lacks the task kind or the initialization, if the initialization is for another kind
        or the precision differs, if a loss or weight is not finite, or if the deadline has passed.
        """
        (made,) = self.adapt_together([recipe], deadline=deadline, on_step=on_step)
        if isinstance(made, AdaptationError):
            raise made
        return made

    def adapt_together(
        self,
        recipes: Sequence[JobRecipe],
        *,
        deadline: float = math.inf,
        on_step: OnStep | None = None,
        on_made: OnMade | None = None,
    ) -> list[MadeAdapter | AdaptationError]:
        """Adapt several jobs in one batched inner loop. All must have the same `pass_key`.

        Returns one entry per job: its adapter, or the error that affects only that job. Each adapter equals the one that the job
        would produce alone, up to rounding. `deadline` is a value of `time.monotonic()`. After each inner step,
        `on_step({position of the job: its support loss})` is called. `on_made(position of the job, its entry)` is called for each
        job as soon as it has taken its last step, while others may have steps left.

        Raises an error that affects the whole pass. If there are several jobs, the error does not say which of them caused it.
        """
        base, init = self._base_and_initialization(recipes)
        if len(recipes) > 1 and not all(map(self.can_share_pass, recipes)):
            raise ValueError("a job whose steps use parts of the support set or augmented views cannot share a pass")
        began_at = time.perf_counter()
        support = task_kinds()[recipes[0].kind].support(recipes, Encoded(base))
        encoded_at = time.perf_counter()
        tasks = init.tasks(base, support, steps=[recipe.steps for recipe in recipes], seed=recipes[0].seed)
        step_times = [time.perf_counter()]

        def record_step(losses: dict[int, float]) -> None:
            step_times.append(time.perf_counter())
            if on_step is not None:
                on_step(losses)

        made: dict[int, MadeAdapter | AdaptationError] = {}

        def convert(number: int, task: Ended | DeadlineExceeded) -> None:
            timings = {"tokenize": 1e3 * (encoded_at - began_at), "inner_loop": 1e3 * (time.perf_counter() - encoded_at)}
            steps_ms = tuple(1e3 * (end - start) for start, end in pairwise(step_times))
            made[number] = _made(recipes[number], base, init, task, timings, steps_ms)
            if on_made is not None:
                on_made(number, made[number])

        outer, update = init.outer(base.device), init.inner.update
        adapt_each(tasks, outer, update, deadline=deadline, on_step=record_step, on_ended=convert)
        return [made[number] for number in range(len(recipes))]

    def _base_and_initialization(self, recipes: Sequence[JobRecipe]) -> tuple[Base, Initialization]:
        """Return the base model and the initialization that all recipes of one pass use.

        Raises AdaptationError if this worker cannot run one of them, and ValueError if they differ in kind or initialization.
        """
        if len({(recipe.kind, recipe.initialization_digest) for recipe in recipes}) > 1:
            raise ValueError("jobs of different kinds or initializations cannot share a pass")
        for recipe in recipes:
            if recipe.kind not in task_kinds():
                raise AdaptationError(f"tasks of kind {recipe.kind!r} are not known to this worker: install the kind's package")
            digest = recipe.initialization_digest
            if (found := self.known.find(digest)) is None:
                raise AdaptationError(
                    f"initialization {recipe.initialization!r} with digest {digest[:12]}… is neither on this worker nor stored"
                )
            base, init = found
            if recipe.precision != base.precision:
                raise AdaptationError(
                    f"the job asks for {recipe.precision}, this worker runs {base.precision}; set PRECISION on both ends"
                )
            if task_kinds()[recipe.kind].readout != init.readout:
                raise AdaptationError(
                    f"initialization {recipe.initialization!r} is not for tasks of kind {recipe.kind}: expected readout "
                    f"{task_kinds()[recipe.kind].readout}, got {init.readout}"
                )
        return base, init


def _made(
    recipe: JobRecipe,
    base: Base,
    init: Initialization,
    ended: Ended | DeadlineExceeded,
    timings: dict[str, float],
    steps_ms: tuple[float, ...],
) -> MadeAdapter | AdaptationError:
    """Return the adapter of a job whose inner loop has ended, or the error that affects only this job."""
    if isinstance(ended, DeadlineExceeded):
        return ended
    adapter = Adapter(
        AdapterMetadata(
            initialization_digest=recipe.initialization_digest,
            base_weights_sha256=base.spec.weights_sha256,
            delta=init.delta,
            scale=init.scale,
            labels=recipe.labels,
            readout=init.readout,
        ),
        {name: leaf.cpu() for name, leaf in ended.delta.items()},
        {name: leaf.cpu() for name, leaf in ended.answering.items()},
    )
    if (name := not_finite({**adapter.delta, **adapter.answering})) is not None:
        return NonFinite(f"{name} is not finite after {len(ended.losses)} inner steps")
    words = (ended.decided or (False, None)) if recipe.label_words == "auto" else None
    return MadeAdapter(adapter_to_bytes(adapter), ended.losses, timings, steps_ms[: len(ended.losses)], words)


def known_initializations(
    residents: Sequence[Resident[B_co]],
    stored: Callable[[str], bytes | None],
    *,
    probe: Callable[[B_co, DeltaConfig], None] | None = None,
) -> KnownInitializations[B_co]:
    loaded = [(resident.base, list(resident.initializations.values())) for resident in residents]
    return KnownInitializations(loaded, stored, probe=probe)


def load_residents(settings: WorkerSettings) -> list[Resident[Base]]:
    """Load every base model named in the settings, with all initializations made for it.

    Each base model is probed for the deltas of its initializations. Raises MetatrainError or SettingsError if something cannot be
    loaded.
    """
    return _residents(settings, load_base, probe_delta)


def describe_residents(settings: WorkerSettings) -> list[Resident[BaseDescription]]:
    """Describe every base model named in the settings, without its weights.

    The initializations made for it are loaded. Raises MetatrainError or SettingsError if something cannot be loaded.
    """
    return _residents(settings, describe_base, None)


def _residents(
    settings: WorkerSettings, load: Callable[..., B_co], probe: Callable[[B_co, DeltaConfig], None] | None
) -> list[Resident[B_co]]:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    hub = Hub(reachable=not settings.air_gapped, token=settings.hub_token)
    folder = settings.initializations_dir
    kinds, cipher = _usable_kinds(), settings.cipher
    residents: list[Resident[B_co]] = []
    for name in settings.base_models:
        base = load(name, precision=settings.precision, hub=hub)
        if any(resident.base.digest == base.digest for resident in residents):
            raise SettingsError(f"BASE_MODEL: expected different base models, got {name} twice, perhaps under two names")
        baselines = [init for kind in kinds for init in kind.baselines(base)]
        several = len(settings.base_models) > 1
        catalog = load_catalog(base, folder, baselines=baselines, probe=probe, others_skipped=several)
        residents.append(Resident(base, catalog, cipher.sealing_key, cipher.key_ids))
    if folder is not None:
        report_not_taken(folder, [resident.base for resident in residents])
    return residents


def _usable_kinds() -> list[TaskKind]:
    """Return all task kinds. Raises PluginError if the readout that one of them needs is not installed."""
    for kind in task_kinds().values():
        if kind.readout not in readout_kinds():
            known = ", ".join(readout_kinds())
            raise PluginError(f"task kind {kind.name}: readout: expected one of {known}, got {kind.readout!r}")
    return list(task_kinds().values())


def load_runtime(settings: WorkerSettings, stored: Callable[[str], bytes | None]) -> Runtime:
    """Load the base models and initializations of a worker. Raises MetatrainError and SettingsError."""
    return Runtime(*load_residents(settings), stored=stored)
