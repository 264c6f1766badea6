"""Prefix tuning: P learned keys and values in the attention of each layer. Leaves have a task axis.

    attention(q, [P_k; k], [P_v; v])          P_k, P_v: [P, D] for each layer          (Li and Liang 2021, arXiv:2101.00190, §4.2)

This module registers two attention functions with transformers, one for eager and one for sdpa attention. Each of them prepends the
prefix and then calls the original function. So every architecture that looks up its attention function by name is supported. The
attention modules are found by calling the model once.

In a model with a table of position embeddings, the positions of the words are increased by P, as in PEFT, which passes the prefix
as a cache of past keys. In a model with rotary embeddings, the keys of the prefix are not rotated, and the positions of the words
do not change. Under a causal mask every word sees the prefix.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from metatrain.deltas.attention import PREFIX_KEY, PREFIX_VALUE, attention_modules, attention_of
from metatrain.deltas.peft_format import PeftFiles, side_by_side, virtual_tokens
from metatrain.deltas.scope import Delta
from metatrain.deltas.sites import layer_of
from metatrain.deltas.virtual import PREFIX_TOKENS, check_takes_token_ids, hook_positions, random_vectors
from metatrain.errors import UnsupportedDelta

_TAKES_PAST_KEYS = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "gpt2"}


class PrefixConfig(BaseModel):
    """The configuration of a prefix.

    `tokens`: P, the number of learned keys and values in each layer (PEFT's `num_virtual_tokens`). `layers`: the numbers of the
    layers (`sites.layer_of`) that get a prefix; None is every layer with attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = True

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(default=8, ge=1, le=256)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)


class Prefix:
    """A prefix on one base model (a `DeltaKind`).

    Leaves: `{attention module}.prefix_key` P_k and `{attention module}.prefix_value` P_v, [P, D], in the order of the layers.
    Raises UnsupportedDelta if the model's input is not token ids, if its attention is neither eager nor sdpa, if it does not look
    up its attention function by name, or if a layer in `layers` has no attention.
    """

    per_token: ClassVar[bool] = False

    def __init__(self, config: PrefixConfig, model: nn.Module) -> None:
        self.config, self.model = config, model
        check_takes_token_ids(model, config.kind)
        attention_before = attention_of(model)
        name_of = {id(module): name for name, module in model.named_modules()}
        self.sites: dict[str, nn.Module] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for module, key_width, value_width in attention_modules(model):
            name = name_of[id(module)]
            if config.layers is None or layer_of(name) in config.layers:
                self.sites[name] = module
                self.shapes[f"{name}.{PREFIX_KEY}"] = (config.tokens, key_width)
                self.shapes[f"{name}.{PREFIX_VALUE}"] = (config.tokens, value_width)
        unmatched = set(config.layers or ()) - {layer_of(name) for name in self.sites}
        if unmatched or not self.sites:
            cast(Any, model).set_attn_implementation(attention_before)
            raise UnsupportedDelta(f"delta.layers: {type(model).__name__} has no attention in layer {min(unmatched or {0})}")

    @property
    def lowest_layer(self) -> int:
        """0, because a prefix shifts the positions of the words, which enter at the bottom of the model."""
        return 0

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw initial leaves θ for one task, float32, normal with the standard deviation `b_std`.

        If `b_std` is 0, the standard deviation is 0.02.
        """
        return random_vectors(self.shapes, generator, b_std)

    def attach(self, sites: Iterable[str]) -> None:
        for site in sites:
            cast(Any, self.sites[site]).prefix_site = site
        hook_positions(self.model)

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        return dict(delta)

    @property
    def counts(self) -> dict[str, int]:
        """The number of prefix tokens P under several leaf names: `prefix_tokens` and one for each site.

        The leaf `prefix_tokens` shifts the positions of a row's words. The leaf `{site}.prefix_tokens` of each site is needed
        because the same batch may contain rows that have a prefix in other layers.
        """
        return dict.fromkeys([PREFIX_TOKENS, *(f"{site}.{PREFIX_TOKENS}" for site in self.sites)], self.config.tokens)

    @property
    def peft(self) -> PeftFiles | None:
        """The format of θ in PEFT's files; None if PEFT would compute something else.

        PEFT supports only prefixes in all layers, and only models whose attention takes past keys and values.
        """
        model_config: Any = self.model.config
        if self.config.layers is not None or model_config.model_type not in _TAKES_PAST_KEYS:
            return None
        tokens, width = next(iter(self.shapes.values()))
        prefix_fields = {"encoder_hidden_size": width, "prefix_projection": False}
        shared = virtual_tokens(tokens, width, model_config)
        return side_by_side({"peft_type": "PREFIX_TUNING", **shared, **prefix_fields}, self.shapes)
