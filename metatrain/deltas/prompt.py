"""Prompt tuning: P learned embeddings before those of the text. The leaf has a leading task axis.

    features( [P_e; E(tokens)] )          P_e: [P, D]          (Lester, Al-Rfou, Constant 2021, arXiv:2104.08691)

The model applies position embeddings and layer norm to the prompt as it does to the words of the text. Pooling excludes the prompt.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from metatrain.deltas.peft_format import PeftFiles, PeftLeaf, leaf_by_leaf, virtual_tokens
from metatrain.deltas.scope import Delta
from metatrain.deltas.virtual import PROMPT, PROMPT_TOKENS, check_takes_token_ids, hook_positions, random_vectors
from metatrain.errors import UnsupportedDelta


class PromptConfig(BaseModel):
    """The configuration of a prompt.

    `tokens`: P, the number of learned embeddings (PEFT's `num_virtual_tokens`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = True

    kind: Literal["prompt"] = "prompt"
    tokens: int = Field(default=8, ge=1, le=256)


class Prompt:
    """A prompt on one base model (a `DeltaKind`).

    Its only leaf is `prompt_embeddings` P_e [P, D], which `virtual.prepend_prompt` puts before the word embeddings. Raises
    UnsupportedDelta if the model's input is not token ids, or if the model has no table of word embeddings.
    """

    per_token: ClassVar[bool] = False

    def __init__(self, config: PromptConfig, model: nn.Module) -> None:
        self.config, self.model = config, model
        self.sites: dict[str, nn.Module] = {}
        check_takes_token_ids(model, config.kind)
        width = getattr(cast(Any, model).get_input_embeddings(), "embedding_dim", None)
        if width is None:
            raise UnsupportedDelta(f"delta.kind: prompt needs a table of word embeddings, {type(model).__name__} has none")
        self.shapes: dict[str, tuple[int, ...]] = {PROMPT: (config.tokens, int(width))}

    @property
    def lowest_layer(self) -> int:
        return 0

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw the initial leaf θ for one task, float32, normal with the standard deviation `b_std`.

        If `b_std` is 0, the standard deviation is 0.02.
        """
        return random_vectors(self.shapes, generator, b_std)

    def attach(self, sites: Iterable[str]) -> None:
        hook_positions(self.model)

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        return dict(delta)

    @property
    def counts(self) -> dict[str, int]:
        return {PROMPT_TOKENS: self.config.tokens}

    @property
    def peft(self) -> PeftFiles:
        tokens, width = self.shapes[PROMPT]
        shared = virtual_tokens(tokens, width, self.model.config)
        essentials = {"peft_type": "PROMPT_TUNING", **shared, "prompt_tuning_init": "RANDOM"}
        return leaf_by_leaf(essentials, self.shapes, {PROMPT: PeftLeaf(PROMPT, self.shapes[PROMPT])})
