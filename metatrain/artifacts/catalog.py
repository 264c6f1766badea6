"""The catalog of a deployment's initializations: shipped ones, baselines and configured folders."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from metatrain.artifacts.initialization import Initialization, load_initialization, read_description
from metatrain.deltas import DeltaConfig
from metatrain.errors import ArtifactError
from metatrain.models.description import BaseDescription

log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parents[1] / "initializations"
SHIPPED_BEFORE = frozenset({"51225390fe39763433ebb9e94fd20b5d29bca2268dc41eac75b0525b07cb461c"})
"""The digests of all initializations that were ever shipped. None of them changes parameters of the base model, so their adapters
can be used even if the initialization itself is gone."""


B = TypeVar("B", bound=BaseDescription)


def load_catalog(
    base: B,
    extra: Path | None = None,
    *,
    baselines: Iterable[Initialization] = (),
    probe: Callable[[B, DeltaConfig], None] | None = None,
    others_skipped: bool = False,
) -> dict[str, Initialization]:
    """Return all initializations for `base`, {name: initialization}, and probe each of their deltas.

    `extra`: a folder of initialization folders. `baselines`: the untrained initializations to include. `probe`: called once for
    each delta, such as `probe_delta`; None skips the probes, in a process that relies on another one to run them. `others_skipped`:
    True skips initializations in `extra` that are for another base model; False raises ArtifactError for them. Shipped
    initializations for another base model are always skipped.

    Raises ArtifactError if an initialization does not load or if two have the same name, and UnsupportedDelta if a delta does not
    work on `base`.
    """
    catalog: dict[str, Initialization] = {}
    for init in baselines:
        if init.name in catalog:
            raise ArtifactError(f"baselines: two task kinds have one named {init.name!r}; rename one of them")
        catalog[init.name] = init
    if extra is not None and not extra.is_dir():
        raise ArtifactError(f"INITIALIZATIONS_DIR: expected a folder of initialization folders, got {str(extra)!r}")
    folders = sorted(path.parent for path in extra.glob("*/initialization.json")) if extra else []
    if others_skipped:
        folders = [folder for folder in folders if _made_for(folder, base)]
    for folder in [*_shipped_for(base), *folders]:
        init = load_initialization(folder, base)
        if init.name in catalog:
            raise ArtifactError(f"{folder}: another initialization is already named {init.name!r}; rename one of them")
        catalog[init.name] = init
    if probe is not None:
        deltas: set[DeltaConfig] = {init.delta for init in catalog.values()}
        for delta in deltas:
            probe(base, delta)
    return catalog


def _shipped_for(base: BaseDescription) -> list[Path]:
    """Return the folders of the shipped initializations for `base`, and log which others are skipped."""
    folders = []
    for path in sorted(SHIPPED.glob("*/initialization.json")):
        if _made_for(path.parent, base):
            folders.append(path.parent)
    return folders


def _made_for(folder: Path, base: BaseDescription) -> bool:
    """Return True if an initialization folder is for `base`. Otherwise log that it is skipped."""
    made_for = read_description(folder).base
    if made_for.identity == base.spec.identity:
        return True
    log.info("skipped initialization %r: it is for base model %s, not %s", folder.name, made_for.model, base.spec.model)
    return False
