"""The initializations that a deployment can adapt from: the shipped default, the two baselines, and the folders it is given."""

import json
import logging
from pathlib import Path

from metatrain.artifacts.artifact import Initialization, load_initialization
from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.deltas import DeltaConfig
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from metatrain.serving.probe import probe

log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parents[1] / "initializations"


def load_catalog(base: Base, extra: Path | None = None, *, probed: bool = True) -> dict[str, Initialization]:
    """Every initialization by name, each of its delta kinds probed on `base` once, unless another process has done so.

    `extra` is a folder of initialization folders. The shipped ones are left out where `base` is not the model they were trained
    on. Raises ArtifactError or UnsupportedDelta, and ArtifactError for a name used twice.
    """
    catalog = {init.name: init for init in (frozen_prototypes(base), lora_from_zero(base))}
    if extra is not None and not extra.is_dir():
        raise ArtifactError(f"INITIALIZATIONS_DIR: expected a folder of initialization folders, got {str(extra)!r}")
    folders = sorted(path.parent for path in extra.glob("*/initialization.json")) if extra else []
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
        made_for = json.loads(path.read_bytes())["base"]
        if all(made_for[key] == value for key, value in base.spec.identity.items()):
            folders.append(path.parent)
        else:
            log.info("the shipped initialization %r is for %s and left out here", path.parent.name, made_for["model"])
    return folders
