"""The initializations that a deployment can adapt from: the shipped default, the two baselines, and the folders it is given."""

from pathlib import Path

from metatrain.artifact import Initialization, load_initialization
from metatrain.base.text import TextBase
from metatrain.baselines import frozen_prototypes, lora_from_zero
from metatrain.deltas import LoRAConfig
from metatrain.errors import ArtifactError
from metatrain.probe import probe

SHIPPED = Path(__file__).with_name("initializations")


def load_catalog(base: TextBase, extra: Path | None = None) -> dict[str, Initialization]:
    """Every initialization by name, each of its delta kinds probed on `base` once.

    `extra` is a folder of initialization folders. The shipped ones are left out where `base` is not the model they were trained
    on. Raises ArtifactError or UnsupportedDelta, and ArtifactError for a name used twice.
    """
    catalog = {init.name: init for init in (frozen_prototypes(base), lora_from_zero(base))}
    folders = sorted(path.parent for path in extra.glob("*/initialization.json")) if extra else []
    for folder in [*_shipped_for(base), *folders]:
        init = load_initialization(folder, base)
        if init.name in catalog:
            raise ArtifactError(f"{folder}: an initialization named {init.name!r} is already there")
        catalog[init.name] = init
    probed: set[LoRAConfig] = set()
    for init in catalog.values():
        if init.delta not in probed:
            probe(base, base.attach(init.delta))
            probed.add(init.delta)
    return catalog


def _shipped_for(base: TextBase) -> list[Path]:
    stated = f'"weights_sha256": "{base.spec.weights_sha256}"'
    found = sorted(path.parent for path in SHIPPED.glob("*/initialization.json"))
    return [folder for folder in found if stated in (folder / "initialization.json").read_text(encoding="utf-8")]
