"""One resident base model and the initializations it can adapt from; turns recipes into adapters' bytes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from metatrain.artifacts.artifact import Adapter, AdapterMetadata, Initialization, adapter_to_bytes, not_finite
from metatrain.artifacts.catalog import load_catalog
from metatrain.errors import AdaptationError, DeadlineExceeded, NonFinite
from metatrain.inner.encoded import Encoded
from metatrain.inner.supervised import Supervised
from metatrain.inner.together import Ended, adapt_each
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.models.source import Hub
from metatrain.readouts.registry import READOUTS
from worker.ledger.messages import JobRecipe
from worker.settings import WorkerSettings

OnStep = Callable[[dict[int, float]], None]


@dataclass(frozen=True)
class Product:
    """An adapter's bytes, the support loss before each step, milliseconds by stage, and of each inner step of its pass."""

    content: bytes
    support_loss: tuple[float, ...]
    timings: dict[str, float]
    steps_ms: tuple[float, ...]


class Runtime:
    def __init__(self, base: Base, initializations: dict[str, Initialization]) -> None:
        self.base = base
        self.by_digest = {init.digest: init for init in initializations.values()}

    def together(self, recipe: JobRecipe) -> bool:
        """Whether a job may run in one pass with others of its kin: not where its support set is walked through in parts, or gets
        augmented views, which are made by one seed for all."""
        init = self.by_digest.get(recipe.initialization_digest)
        return init is not None and init.inner.augmentation is None and len(recipe.taught) <= init.inner.rows_per_step

    def adapt(self, recipe: JobRecipe, *, deadline: float = math.inf, on_step: OnStep | None = None) -> Product:
        """Run the inner loop of one job. Raises AdaptationError: the initialization is not here, the precision is another, a loss
        or weight is not finite, or the deadline (`time.monotonic`) passed."""
        (product,) = self.adapt_together([recipe], deadline=deadline, on_step=on_step)
        if isinstance(product, AdaptationError):
            raise product
        return product

    def adapt_together(
        self, recipes: Sequence[JobRecipe], *, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> list[Product | AdaptationError]:
        """Run the inner loops of several jobs of one kin in one pass, each as alone up to rounding. `on_step({job: support loss})`.

        An error that is one job's alone stands in the place of its product; raises those that are of the pass, with which job they
        are about unknown where there are several.
        """
        init = self._initialization(recipes)
        if len(recipes) > 1 and not all(map(self.together, recipes)):
            raise ValueError("jobs that are walked through in parts, or get augmented views, cannot share a pass")
        began = time.perf_counter()
        pairs = []
        for recipe in recipes:
            number = {label: c for c, label in enumerate(recipe.labels)}
            pairs.append([(text, number[label]) for text, label in recipe.taught])
        support = Encoded(self.base).support(pairs)
        encoded = time.perf_counter()
        tasks = Supervised(
            self.base,
            self.base.attach(init.delta),
            READOUTS[init.readout],
            init.inner,
            support,
            steps=[recipe.steps for recipe in recipes],
            seed=recipes[0].seed,
            serving=True,
        )
        ticks = [time.perf_counter()]

        def tick(losses: dict[int, float]) -> None:
            ticks.append(time.perf_counter())
            if on_step is not None:
                on_step(losses)

        ended = adapt_each(tasks, init.outer(self.base.device), init.inner.update, deadline=deadline, on_step=tick)
        made: list[Product | AdaptationError] = []
        timings = {"tokenize": 1e3 * (encoded - began), "inner_loop": 1e3 * (time.perf_counter() - encoded)}
        steps_ms = tuple(1e3 * (over - began) for began, over in pairwise(ticks))
        for recipe, each in zip(recipes, ended, strict=True):
            try:
                made.append(each if isinstance(each, DeadlineExceeded) else self._product(recipe, init, each, timings, steps_ms))
            except NonFinite as error:
                made.append(error)
        return made

    def _initialization(self, recipes: Sequence[JobRecipe]) -> Initialization:
        for recipe in recipes:
            if recipe.precision != self.base.precision:
                raise AdaptationError(
                    f"the job asks for {recipe.precision}, this worker runs {self.base.precision}; set PRECISION on both ends"
                )
            digest = recipe.initialization_digest
            if digest not in self.by_digest:
                raise AdaptationError(f"initialization {recipe.initialization!r} with digest {digest[:12]}… is not on this worker")
        return self.by_digest[recipes[0].initialization_digest]

    def _product(
        self, recipe: JobRecipe, init: Initialization, ended: Ended, timings: dict[str, float], steps_ms: tuple[float, ...]
    ) -> Product:
        adapter = Adapter(
            AdapterMetadata(
                initialization_digest=recipe.initialization_digest,
                base_weights_sha256=self.base.spec.weights_sha256,
                delta=init.delta,
                scale=init.scale,
                labels=recipe.labels,
            ),
            {name: leaf.cpu() for name, leaf in ended.delta.items()},
            ended.answering["head.weight"].cpu(),
            ended.answering["head.bias"].cpu(),
        )
        leaves = {**adapter.delta, "head.weight": adapter.weight, "head.bias": adapter.bias}
        if (name := not_finite(leaves)) is not None:
            raise NonFinite(f"{name} is not finite after {len(ended.losses)} inner steps")
        return Product(adapter_to_bytes(adapter), ended.losses, timings, steps_ms[: len(ended.losses)])


def load_runtime(settings: WorkerSettings) -> Runtime:
    """The base model and every initialization of the settings, probed. Raises MetatrainError, and SettingsError."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    hub = Hub(reachable=not settings.air_gapped, token=settings.hub_token)
    base = load_base(settings.base_model, precision=settings.precision, hub=hub)
    return Runtime(base, load_catalog(base, settings.initializations_dir))
