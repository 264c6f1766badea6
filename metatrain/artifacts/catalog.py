"""The initializations that a deployment can adapt from: the shipped default, the two baselines, and the folders it is given."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from metatrain.artifacts.initialization import Initialization, load_initialization
from metatrain.deltas import DeltaConfig
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from metatrain.serving.probe import probe

log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parents[1] / "initializations"


def load_catalog(
    base: Base,
    extra: Path | None = None,
    *,
    baselines: Iterable[Initialization] = (),
    probed: bool = True,
    others_skipped: bool = False,
) -> dict[str, Initialization]:
    """Load every initialization by name, each of its delta kinds probed on `base` once, unless another process has done so.

    `extra` is a folder of initialization folders; `baselines`: what nothing was learned for. The shipped ones are left out where
    `base` is not the model they were trained on, and with `others_skipped` those of `extra` too, else they are an error. Raises
    ArtifactError or UnsupportedDelta, and ArtifactError for a name used twice.
    """
    catalog = {init.name: init for init in baselines}
    if extra is not None and not extra.is_dir():
        raise ArtifactError(f"INITIALIZATIONS_DIR: expected a folder of initialization folders, got {str(extra)!r}")
    folders = sorted(path.parent for path in extra.glob("*/initialization.json")) if extra else []
    if others_skipped:
        folders = [folder for folder in folders if _made_for(folder, base)]
    for folder in [*_shipped_for(base), *folders]:
        init = load_initialization(folder, base)
        if init.name in catalog:
            raise ArtifactError(f"{folder}: an initialization named {init.name!r} is already there")
        catalog[init.name] = init
    kinds: set[DeltaConfig] = {init.delta for init in catalog.values()} if probed else set()
    for kind in kinds:
        probe(base, base.attach(kind))
    return catalog


def _shipped_for(base: Base) -> list[Path]:
    """The shipped folders that were made for `base`; says which are left out."""
    folders = []
    for path in sorted(SHIPPED.glob("*/initialization.json")):
        if _made_for(path.parent, base):
            folders.append(path.parent)
    return folders


def _made_for(folder: Path, base: Base) -> bool:
    """Return True if an initialization folder names this base model; say so where it does not."""
    made_for = json.loads((folder / "initialization.json").read_bytes()).get("base", {})
    if all(made_for.get(key) == value for key, value in base.spec.identity.items()):
        return True
    log.info("the initialization %r is for %s and left out for %s", folder.name, made_for.get("model"), base.spec.model)
    return False
