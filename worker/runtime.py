"""Resident base models and the initializations they can adapt from; turns recipes into adapters' bytes."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from metatrain.artifacts.adapter import Adapter, AdapterMetadata, adapter_to_bytes
from metatrain.artifacts.catalog import load_catalog
from metatrain.artifacts.files import not_finite
from metatrain.artifacts.initialization import Initialization
from metatrain.errors import AdaptationError, DeadlineExceeded, NonFinite
from metatrain.inner.encoded import Encoded
from metatrain.inner.together import Ended, OnStep, adapt_each
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.models.source import Hub
from worker.errors import SettingsError
from worker.kinds.registry import task_kinds
from worker.ledger.messages import JobRecipe, earlier_queue_name, queue_name
from worker.settings import WorkerSettings


@dataclass(frozen=True)
class MadeAdapter:
    """An adapter's bytes, the support loss before each step, milliseconds by stage, and of each inner step of its pass."""

    content: bytes
    support_loss: tuple[float, ...]
    timings: dict[str, float]
    steps_ms: tuple[float, ...]


@dataclass(frozen=True)
class Resident:
    """A base model and the initializations that can be adapted from on it, by name."""

    base: Base
    initializations: dict[str, Initialization]

    @property
    def queue(self) -> str:
        return queue_name(self.base.digest, self.base.precision)

    @property
    def earlier_queue(self) -> str:
        return earlier_queue_name(self.base.spec.weights_sha256, self.base.precision)


class Runtime:
    """The resident base models of one worker; turns recipes into adapters' bytes."""

    def __init__(self, *residents: Resident) -> None:
        self.residents = residents
        self.by_digest = {init.digest: (own.base, init) for own in residents for init in own.initializations.values()}

    def together(self, recipe: JobRecipe) -> bool:
        """Return True if the job may share a pass with others of its pass key. It may not if its support set is walked through in
        parts or gets augmented views, which are made by one seed for all."""
        _, init = self.by_digest.get(recipe.initialization_digest, (None, None))
        if init is None or recipe.kind not in task_kinds():
            return False
        return init.inner.augmentation is None and recipe.rows <= init.inner.rows_per_step

    def adapt(self, recipe: JobRecipe, *, deadline: float = math.inf, on_step: OnStep | None = None) -> MadeAdapter:
        """Run the inner loop of one job. Raises AdaptationError: the initialization is not here, the precision is another, a loss
        or weight is not finite, or the deadline (`time.monotonic`) passed."""
        (made,) = self.adapt_together([recipe], deadline=deadline, on_step=on_step)
        if isinstance(made, AdaptationError):
            raise made
        return made

    def adapt_together(
        self, recipes: Sequence[JobRecipe], *, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> list[MadeAdapter | AdaptationError]:
        """Run the inner loops of several jobs with the same pass key in one pass, each as alone up to rounding.

        `on_step({job: support loss})` is called after each inner step.

        An error that is one job's alone stands in the place of its adapter; raises those that are of the pass, with which job they
        are about unknown where there are several.
        """
        base, init = self._start_of(recipes)
        if len(recipes) > 1 and not all(map(self.together, recipes)):
            raise ValueError("jobs that are walked through in parts, or get augmented views, cannot share a pass")
        began = time.perf_counter()
        support = task_kinds()[recipes[0].kind].support(recipes, Encoded(base))
        encoded = time.perf_counter()
        tasks = init.tasks(base, support, steps=[recipe.steps for recipe in recipes], seed=recipes[0].seed)
        ticks = [time.perf_counter()]

        def tick(losses: dict[int, float]) -> None:
            ticks.append(time.perf_counter())
            if on_step is not None:
                on_step(losses)

        ended = adapt_each(tasks, init.outer(base.device), init.inner.update, deadline=deadline, on_step=tick)
        made: list[MadeAdapter | AdaptationError] = []
        timings = {"tokenize": 1e3 * (encoded - began), "inner_loop": 1e3 * (time.perf_counter() - encoded)}
        steps_ms = tuple(1e3 * (over - began) for began, over in pairwise(ticks))
        for recipe, each in zip(recipes, ended, strict=True):
            try:
                made.append(each if isinstance(each, DeadlineExceeded) else _made(recipe, base, init, each, timings, steps_ms))
            except NonFinite as error:
                made.append(error)
        return made

    def _start_of(self, recipes: Sequence[JobRecipe]) -> tuple[Base, Initialization]:
        for recipe in recipes:
            if recipe.kind not in task_kinds():
                raise AdaptationError(f"tasks of kind {recipe.kind!r} are not known to this worker: is its package installed?")
            digest = recipe.initialization_digest
            if digest not in self.by_digest:
                raise AdaptationError(f"initialization {recipe.initialization!r} with digest {digest[:12]}… is not on this worker")
            base, init = self.by_digest[digest]
            if recipe.precision != base.precision:
                raise AdaptationError(
                    f"the job asks for {recipe.precision}, this worker runs {base.precision}; set PRECISION on both ends"
                )
            if task_kinds()[recipe.kind].readout != init.readout:
                raise AdaptationError(f"initialization {recipe.initialization!r} is not for tasks of kind {recipe.kind}")
        return self.by_digest[recipes[0].initialization_digest]


def _made(
    recipe: JobRecipe, base: Base, init: Initialization, ended: Ended, timings: dict[str, float], steps_ms: tuple[float, ...]
) -> MadeAdapter:
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
        raise NonFinite(f"{name} is not finite after {len(ended.losses)} inner steps")
    return MadeAdapter(adapter_to_bytes(adapter), ended.losses, timings, steps_ms[: len(ended.losses)])


def load_residents(settings: WorkerSettings, *, probed: bool = True) -> list[Resident]:
    """Load the base models of the settings with every initialization, each delta probed on each. Raises MetatrainError, and
    SettingsError."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    hub = Hub(reachable=not settings.air_gapped, token=settings.hub_token)
    residents: list[Resident] = []
    for name in settings.base_models:
        base = load_base(name, precision=settings.precision, hub=hub)
        if any(own.base.digest == base.digest for own in residents):
            raise SettingsError(f"BASE_MODEL: {name} is there twice, perhaps under another name")
        baselines = [init for kind in task_kinds().values() for init in kind.baselines(base)]
        folder = settings.initializations_dir
        several = len(settings.base_models) > 1
        residents.append(Resident(base, load_catalog(base, folder, baselines=baselines, probed=probed, others_skipped=several)))
    return residents


def load_runtime(settings: WorkerSettings) -> Runtime:
    """Load all that a worker needs to adapt. Raises MetatrainError, and SettingsError."""
    return Runtime(*load_residents(settings))
