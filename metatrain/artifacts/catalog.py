"""The catalog of a deployment's initializations: shipped ones, baselines and configured folders."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from quickstudy.one_line import shown, shown_path

from metatrain.artifacts.initialization import Initialization, load_initialization, read_description
from metatrain.deltas import DeltaConfig
from metatrain.errors import ArtifactError
from metatrain.models.description import BaseDescription

log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parents[1] / "initializations"
SHIPPED_BEFORE = frozenset({"51225390fe39763433ebb9e94fd20b5d29bca2268dc41eac75b0525b07cb461c"})
"""The digests of all initializations that were ever shipped. None of them changes parameters of the base model, so their adapters
can be used even if the initialization itself is gone."""

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".zst")


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
    folders = find_initializations(extra)[0] if extra is not None else []
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


def find_initializations(parent: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the initialization folders in `parent`, and the reason for each other entry, {name: reason}.

    Hidden entries, and files that hold no initialization, such as those of a run, are left out. Raises ArtifactError if `parent` is
    not a folder, or is itself an initialization.
    """
    if not parent.is_dir():
        raise ArtifactError(f"INITIALIZATIONS_DIR: expected a folder of initialization folders, got {str(parent)!r}")
    if (parent / "initialization.json").exists():
        raise ArtifactError(f"INITIALIZATIONS_DIR: expected the folder above {str(parent)!r}, which is an initialization itself")
    try:
        entries = sorted(path for path in parent.iterdir() if not path.name.startswith(".") and not _is_beside(path))
    except OSError as error:
        raise ArtifactError(f"INITIALIZATIONS_DIR: {shown_path(parent)}: {error.strerror}") from error
    reasons = {path.name: _why_none(path) for path in entries}
    return [path for path in entries if reasons[path.name] is None], {name: why for name, why in reasons.items() if why is not None}


def _is_beside(path: Path) -> bool:
    return path.is_file() and path.suffix not in _ARCHIVES


def _why_none(path: Path) -> str | None:
    """Return why `path` is not an initialization folder, or None if it is one."""
    if not path.is_dir():
        return "it is a broken link" if not path.exists() else "it is an archive: unpack it"
    try:
        if (path / "initialization.json").is_file():
            return None
        deeper = next(iter(sorted(path.glob("*/initialization.json"))), None)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if deeper is not None:
        return f"it has no initialization.json, but its folder {shown(deeper.parent.name)} has: move that one up"
    if (path / "adapter_config.json").is_file():
        return "it has no initialization.json: an adapter of PEFT alone lacks the learning rates and the inner loop"
    return "it has no initialization.json"


def report_not_taken(parent: Path, bases: Sequence[BaseDescription]) -> dict[str, str]:
    """Return and log the entries of `parent` that none of `bases` can use, {name: reason}.

    Call it after `load_catalog`, which has raised an error for every damaged initialization.
    """
    folders, not_taken = find_initializations(parent)
    for folder in folders:
        made_for = read_description(folder).base
        if all(made_for.identity != base.spec.identity for base in bases):
            not_taken[folder.name] = f"it is for the base model {shown(made_for.model)}, which is not loaded"
    for name, reason in not_taken.items():
        log.warning("INITIALIZATIONS_DIR: %s is not taken: %s", shown(name), reason)
    return not_taken


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
