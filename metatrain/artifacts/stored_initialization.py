"""Initializations as one byte string, for a store that names them by their digest.

The bytes are a safetensors file with the leaves `theta.*`, `rates.*` and `base.*` (the base update), float32. Its header has the
content of `initialization.json` as JSON, without digests of files. The names are those of the delta, not PEFT's.
"""

from pydantic import ValidationError
from safetensors.torch import save

from metatrain.artifacts.files import contiguous, load_leaves
from metatrain.artifacts.header import Header, check_leaves, header_of
from metatrain.artifacts.initialization import Initialization, InitializationFile, attach_delta, check_rates, rate_shapes
from metatrain.errors import ArtifactError
from metatrain.inner.problem import Outer
from metatrain.models.description import BaseDescription
from metatrain.pydantic_errors import first_problem
from metatrain.readouts.registry import readout_kinds

_METADATA_KEY = "quickstudy-initialization"


def initialization_to_bytes(init: Initialization) -> bytes:
    """Return an initialization as bytes, with its name and provenance."""
    leaves = Outer(init.theta, init.rates, base=init.base_update).values()
    return save(contiguous(leaves), {_METADATA_KEY: init.describe({}).model_dump_json()})


def described_in(content: bytes, where: str) -> InitializationFile:
    """Return the description in the header of a stored initialization; the tensors are not read.

    `where` is the beginning of an error's message. Raises ArtifactError.
    """
    return _described(header_of(content, where), where)


def initialization_from_bytes(content: bytes, base: BaseDescription, digest: str) -> Initialization:
    """Return the initialization with this digest that `initialization_to_bytes` wrote, for `base`.

    Raises ArtifactError if the bytes are damaged, are for another base model, or have another digest.
    """
    where = f"initialization {digest[:12]}…"
    header = header_of(content, where)
    described = _described(header, where)
    if described.base.identity != base.spec.identity:
        raise ArtifactError(f"{where}: made for base model {described.base.model}, the loaded one is {base.spec.model}")
    kind = attach_delta(base, described.delta, where)
    stated = {name.removeprefix("rates."): leaf for name, leaf in header.leaves.items() if name.startswith("rates.")}
    expected = {f"theta.{name}": shape for name, shape in kind.shapes.items()}
    rates = rate_shapes(stated, kind, readout_kinds()[described.readout].leaves)
    expected |= {f"rates.{name}": shape for name, shape in rates.items()}
    parameters = {f"base.{name}": shape for name, shape in base.parameter_shapes.items()}
    expected |= {name: shape for name, shape in parameters.items() if name in header.leaves}
    check_leaves(header.leaves, expected, where)
    tensors = Outer.from_values(load_leaves(content, header, where))
    init = Initialization.from_parts(described, tensors.theta, tensors.rates, tensors.base)
    check_rates(init.rates, where)
    if init.digest != digest:
        raise ArtifactError(f"{where}: the stored bytes are those of another initialization, {init.digest[:12]}…")
    return init


def _described(header: Header, where: str) -> InitializationFile:
    try:
        return InitializationFile.model_validate_json(header.metadata.get(_METADATA_KEY, "null"))
    except ValidationError as error:
        raise ArtifactError(f"{where}: header: {first_problem(error, InitializationFile)}") from error
