"""One resident base model and the initializations it can adapt from; turns a recipe into an adapter's bytes."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from metatrain.artifact import Adapter, AdapterMetadata, Initialization, adapter_to_bytes
from metatrain.base.text import TextBase, load_text_base
from metatrain.catalog import load_catalog
from metatrain.classification import Classification
from metatrain.errors import AdaptationError, NonFinite
from metatrain.inner import adapt
from metatrain.taskbatch import Tokenized
from worker.messages import JobRecipe
from worker.settings import WorkerSettings


@dataclass(frozen=True)
class Product:
    """An adapter's bytes, the support loss before each step, and milliseconds by stage."""

    content: bytes
    support_loss: tuple[float, ...]
    timings: dict[str, float]


class Runtime:
    def __init__(self, base: TextBase, initializations: dict[str, Initialization]) -> None:
        self.base = base
        self.by_digest = {init.digest: init for init in initializations.values()}

    def adapt(
        self, recipe: JobRecipe, *, deadline: float = math.inf, on_step: Callable[[int, float], None] | None = None
    ) -> Product:
        """Run the inner loop of one job. Raises AdaptationError: the initialization is not here, the precision is another, a loss
        or weight is not finite, or the deadline (`time.monotonic`) passed."""
        dtype = str(self.base.dtype).removeprefix("torch.")
        if recipe.precision != dtype:
            raise AdaptationError(f"the job asks for {recipe.precision}, this worker runs {dtype}; set PRECISION on both ends")
        init = self.by_digest.get(recipe.initialization_digest)
        if init is None:
            raise AdaptationError(
                f"initialization {recipe.initialization!r} with digest {recipe.initialization_digest[:12]}… is not on this worker"
            )
        began = time.perf_counter()
        labels = {label: c for c, label in enumerate(recipe.labels)}
        pairs = [(text, labels[label]) for text, label in recipe.taught]
        support = Tokenized(self.base).support([pairs])
        tokenized = time.perf_counter()
        kind = self.base.attach(init.delta)
        tasks = Classification(self.base, kind, init.inner, support, steps=recipe.steps, seed=recipe.seed, serving=True)
        outer = init.outer(self.base.device)
        end = adapt(tasks, outer, init.inner.update, deadline=deadline, on_step=on_step)
        with torch.no_grad():
            adapted = tasks.adapted(end.phi, outer, end.of, exact=False)
        adapter = Adapter(
            AdapterMetadata(
                initialization_digest=recipe.initialization_digest,
                base_weights_sha256=self.base.spec.weights_sha256,
                delta=init.delta,
                scale=init.scale,
                labels=recipe.labels,
            ),
            {name: leaf[0].cpu() for name, leaf in adapted.delta.items()},
            adapted.head.weight[0].detach().cpu(),
            adapted.head.bias[0].detach().cpu(),
        )
        for name, leaf in {**adapter.delta, "head.weight": adapter.weight, "head.bias": adapter.bias}.items():
            if not torch.isfinite(leaf).all():
                raise NonFinite(f"{name} is not finite after {end.of} inner steps")
        content = adapter_to_bytes(adapter)
        done = time.perf_counter()
        timings = {"tokenize": 1e3 * (tokenized - began), "inner_loop": 1e3 * (done - tokenized)}
        return Product(content, tuple(float(loss[0]) for loss in end.losses), timings)


def load_runtime(settings: WorkerSettings) -> Runtime:
    """The base model and every initialization of the settings, probed. Raises MetatrainError."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    base = load_text_base(settings.base_model, precision=settings.precision)
    return Runtime(base, load_catalog(base, settings.initializations_dir))
