"""LoRA for several tasks at once: each leaf has a leading task axis.

    y = W x + (alpha / R) · B A x          A: [R, D_in], B: [D_out, R]        (Hu et al. 2021, arXiv:2106.09685, eq. 3)

Stacked over G groups (tasks, or the adapters of a mixed batch), A is [G, R, D_in] and B is [G, D_out, R], and the update is two
products of each group's tokens with its own matrices (`groups.py`). `torch.vmap` would not work, because Hugging Face encoders
build their masks with data-dependent Python code.
"""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from metatrain.deltas.peft_format import PeftFiles, in_module, leaf_by_leaf
from metatrain.deltas.scope import Delta, current_delta, current_groups
from metatrain.deltas.sites import Layout, Site, fan_in_fan_out, find_sites, lowest_layer

# The layers that compute queries and values, as the architectures of transformers name them.
_QUERY_AND_VALUE = (
    ("query", "value"),  # BERT, RoBERTa, ELECTRA
    ("q_proj", "v_proj"),  # Llama, Qwen, Mistral, Gemma
    ("q_lin", "v_lin"),  # DistilBERT
    ("value_proj",),  # DeBERTa: its query layer is also called with one row of relative positions for the whole batch
    ("attn.q", "attn.v"),  # MPNet
    ("Wqkv",),  # ModernBERT
    ("c_attn",),  # GPT-2
    ("query_key_value",),  # GPT-NeoX, BLOOM
)


def query_and_value(parameters: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the layers of a model that compute queries and values, for `LoRAConfig.targets`.

    `parameters`: the names of the model's parameters. If none of the known names occurs, returns those of BERT.
    """
    layers = ["." + name.rpartition(".")[0] for name in parameters]
    found = (names for names in _QUERY_AND_VALUE if all(any(layer.endswith("." + name) for layer in layers) for name in names))
    return next(found, _QUERY_AND_VALUE[0])


class LoRAConfig(BaseModel):
    """The configuration of a LoRA.

    `rank`: R. `alpha`: the update B A x is multiplied by `scaling` = alpha / R. `targets`: suffixes of the names of the adapted
    modules, matched at a dot. `layers`: the numbers of the layers (`sites.layer_of`) to adapt; None adapts all of them. PEFT calls
    these fields `r`, `lora_alpha`, `target_modules` and `layers_to_transform`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = True

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[str, ...] = Field(default=("query", "value"), min_length=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


class LoRA:
    """LoRA on one base model (a `DeltaKind`).

    Leaves: `{module}.lora_A.weight` A [R, D_in], `{module}.lora_B.weight` B [D_out, R]. These are PEFT's names without the
    prefix of its wrapper. Raises UnsupportedDelta if a target matches no layer of a supported type (`sites.py`).
    """

    per_token: ClassVar[bool] = True

    def __init__(self, config: LoRAConfig, model: nn.Module) -> None:
        self.config = config
        self.sites: dict[str, Site] = find_sites(model, config.targets, config.layers)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, site in self.sites.items():
            self.shapes[f"{name}.lora_A.weight"] = (config.rank, site.in_features)
            self.shapes[f"{name}.lora_B.weight"] = (site.out_features, config.rank)

    @property
    def lowest_layer(self) -> int:
        return lowest_layer(self.sites)

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw initial leaves θ for one task, float32: A as in PEFT (Kaiming uniform, a = √5), B normal.

        `b_std`: the standard deviation of B. PEFT starts at B = 0, where the gradient of A is exactly zero in the first step.
        Meta-training starts at a small non-zero B, so that A learns from the first step.
        """
        theta: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            leaf = torch.zeros(shape)
            if name.endswith("lora_A.weight"):
                nn.init.kaiming_uniform_(leaf, a=math.sqrt(5), generator=generator)
            elif b_std > 0:
                leaf.normal_(0.0, b_std, generator=generator)
            theta[name] = leaf
        return theta

    def attach(self, sites: Iterable[str]) -> None:
        """Register hooks on `sites`. A hook does nothing in a call whose delta has no leaves for its site."""
        for site in sites:
            self.sites[site].module.register_forward_hook(_lora_hook(site, self.sites[site].layout))

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        """Convert leaves to the form that the hooks read: multiply B by alpha / R.

        The leaves may have a leading task axis.
        """
        scaling = self.config.scaling
        return {name: leaf * scaling if name.endswith("lora_B.weight") else leaf for name, leaf in delta.items()}

    @property
    def counts(self) -> dict[str, int]:
        return {}

    @property
    def peft(self) -> PeftFiles:
        fields = {"r": self.config.rank, "lora_alpha": self.config.alpha, "target_modules": sorted(self.sites)}
        essentials = {"peft_type": "LORA", **fields, "lora_dropout": 0.0, "bias": "none", **fan_in_fan_out(self.sites.values())}
        kernels = {f"{name}.{ab}.weight": site.kernel for name, site in self.sites.items() for ab in ("lora_A", "lora_B")}
        leaves = {name: in_module(name, (*shape, *kernels[name])) for name, shape in self.shapes.items()}
        return leaf_by_leaf(essentials, self.shapes, leaves)


def _lora_hook(site: str, layout: Layout) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    name_a, name_b = f"{site}.lora_A.weight", f"{site}.lora_B.weight"

    def add_low_rank_update(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        delta = current_delta()
        if delta is None or name_a not in delta:
            return None
        return add_low_rank(output, inputs[0], delta[name_a], delta[name_b], layout)

    return add_low_rank_update


def add_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, layout: Layout) -> Tensor:
    """Return y + B A x for a layer's input x and output y, with an A and a B for each group of the call.

    a: [G, R, D_in]; b: [G, D_out, R], already multiplied by alpha / R. The products are computed in the dtype of x, which is the
    base model's; a and b may be float32. Raises UnsupportedDelta if x cannot be divided into the groups.
    """
    groups = current_groups(len(a))
    low = groups.product(layout.tokens(x, groups), a.to(x.dtype).transpose(1, 2))
    return layout.restored(groups.add_product(layout.tokens(y, groups), low, b.to(x.dtype).transpose(1, 2)), y)
