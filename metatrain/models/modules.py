"""The modules of sentence-transformers that change pooled features, and their specs.

    Normalize   x / ‖x‖
    Dense       activation(W x + b), plus x or W' x with a residual connection
    LayerNorm   (x − mean) / √(variance + 1e-5) · γ + β
    Truncate    the first n numbers of x (the setting `truncate_dim`)

All of them compute in float32 or more. Their parameters are not adapted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from metatrain.models.files import StoredTensor, errors_of, file_sha256, is_present, not_loadable, stored_tensors
from metatrain.models.precision import is_finite

WEIGHTS = "model.safetensors"


class _ModuleSpec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NormalizeSpec(_ModuleSpec):
    kind: Literal["normalize"] = "normalize"


class DenseSpec(_ModuleSpec):
    kind: Literal["dense"] = "dense"
    activation: str
    residual: bool
    weights_sha256: str


class LayerNormSpec(_ModuleSpec):
    kind: Literal["layer_norm"] = "layer_norm"
    weights_sha256: str


class TruncateSpec(_ModuleSpec):
    kind: Literal["truncate"] = "truncate"
    features: int = Field(ge=1)


ModuleSpec = Annotated[NormalizeSpec | DenseSpec | LayerNormSpec | TruncateSpec, Field(discriminator="kind")]
"""Everything that the output of a module depends on. A base model's spec contains those of its modules."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation
    for activation in (
        nn.Identity,
        nn.Tanh,
        nn.ReLU,
        nn.ReLU6,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.ELU,
        nn.SELU,
        nn.LeakyReLU,
        nn.Sigmoid,
        nn.LogSigmoid,
        nn.Softplus,
        nn.Softsign,
        nn.Hardtanh,
        nn.Hardswish,
    )
}
"""The activations of a Dense module, by the last part of their name in its config.json. They have no parameters of their own."""


class Module(nn.Module):
    """A module that changes the pooled features of each row (`pooling.FeatureModule`), and its spec."""

    spec: ModuleSpec

    def width(self, features: int) -> int:
        """Return the number of features after the module.

        Raises ValueError if it does not take `features` numbers.
        """
        return features


class Normalize(Module):
    """Scale each row to length 1."""

    spec = NormalizeSpec()

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(features, dim=-1)


class Truncate(Module):
    """Keep the first numbers of each row."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.spec, self._features = TruncateSpec(features=features), features

    def width(self, features: int) -> int:
        return min(features, self._features)

    def forward(self, features: Tensor) -> Tensor:
        return features[:, : self._features]


class Dense(Module):
    """A linear layer with an activation, and with a residual connection if the spec has one.

    `tensors`: `linear.weight` [F', F], `linear.bias` [F'] if any, and `residual.weight` [F', F] if any.
    """

    linear_weight: Tensor
    linear_bias: Tensor | None
    residual_weight: Tensor | None

    def __init__(self, spec: DenseSpec, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.spec, self._residual = spec, spec.residual
        self.activation = ACTIVATIONS[spec.activation]()
        self.out_features, self.in_features = tensors["linear.weight"].shape
        for name in ("linear.weight", "linear.bias", "residual.weight"):
            self.register_buffer(name.replace(".", "_"), tensors.get(name))

    def width(self, features: int) -> int:
        if features != self.in_features:
            raise ValueError(f"Dense takes {self.in_features} features, got {features}")
        return self.out_features

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.activation(nn.functional.linear(features, self.linear_weight, self.linear_bias))
        if not self._residual:
            return output
        return output + (features if self.residual_weight is None else nn.functional.linear(features, self.residual_weight))


class LayerNorm(Module):
    """Layer normalisation with learned scale and shift.

    `tensors`: `norm.weight` and `norm.bias`, both [F].
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, spec: LayerNormSpec, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("weight", tensors["norm.weight"])
        self.register_buffer("bias", tensors["norm.bias"])

    def width(self, features: int) -> int:
        if features != len(self.weight):
            raise ValueError(f"LayerNorm takes {len(self.weight)} features, got {features}")
        return features

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.layer_norm(features, self.weight.shape, self.weight, self.bias)


def load_dense(root: Path, path: str, *, in_features: int, out_features: int, bias: bool, activation: str, residual: bool) -> Dense:
    """Load a Dense module from the folder `path` of a model.

    Raises BaseModelError unless its file has exactly these parameters.
    """
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out_features, in_features)}
    if bias:
        shapes["linear.bias"] = (out_features,)
    if residual and in_features != out_features:
        shapes["residual.weight"] = (out_features, in_features)
    tensors = _load(root, path, shapes)
    sha256 = file_sha256(root / path / WEIGHTS)
    return Dense(DenseSpec(activation=activation, residual=residual, weights_sha256=sha256), tensors)


def load_layer_norm(root: Path, path: str, *, features: int) -> LayerNorm:
    """Load a LayerNorm module from the folder `path` of a model.

    Raises BaseModelError unless its file has exactly its parameters.
    """
    tensors = _load(root, path, {"norm.weight": (features,), "norm.bias": (features,)})
    return LayerNorm(LayerNormSpec(weights_sha256=file_sha256(root / path / WEIGHTS)), tensors)


def _load(root: Path, path: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of a module's safetensors file, at least float32.

    Raises BaseModelError unless they have these names and shapes.
    """
    file = f"{path}/{WEIGHTS}"
    if not is_present(root, file):
        raise not_loadable(root, f"{path} has no {WEIGHTS} (other weight formats can carry code and are not read)")
    _check_tensors(root, file, stored_tensors(root, file), shapes)
    with errors_of(root, file):
        tensors = load_file(root / file)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise not_loadable(root, f"{file}: parameter {name} has NaN or infinite numbers")
    return {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in tensors.items()}


def _check_tensors(root: Path, file: str, found: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BaseModelError, which names a parameter, unless a file has exactly the expected ones.

    They have to be floating-point numbers.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise not_loadable(root, f"{file} lacks the parameter {name}")
        if name not in expected:
            raise not_loadable(root, f"{file} has an unknown parameter {name}")
        shape, dtype = found[name]
        if shape != expected[name]:
            raise not_loadable(root, f"{file}: parameter {name} has shape {list(shape)}, expected {list(expected[name])}")
        if not found[name].is_floating:
            raise not_loadable(root, f"{file}: parameter {name} has dtype {dtype}, expected floating-point numbers")
