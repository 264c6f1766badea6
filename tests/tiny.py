"""Tiny base models with random weights and a word tokenizer, saved and loaded like any other model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

from metatrain.deltas.scope import current_packing
from metatrain.models.backbone import Attention
from metatrain.models.base import Base
from metatrain.models.inputs import TextInputs
from metatrain.models.loading import text_base

WORDS = """
i want to please my card account money lost send close open order pizza book table flight cancel the a today now help refund
reset password login sign in out play music song weather rain lights on off turn call taxi train ticket late early
"""


ARCHITECTURES = ("bert", "roberta", "distilbert", "modernbert")
DECODERS = ("llama", "qwen3")
"""Decoders as encoders. Rows of `llama` begin with a special token and end with none; those of `qwen3` end with one."""
WITHOUT_SDPA = ("mpnet", "deberta-v2", "gemma2")
"""Architectures for which transformers has no fused attention. `gemma2` is a decoder, whose rows begin with a special token."""
_SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_RELATIVE: dict[str, Any] = {
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}


def save_tiny_model(folder: Path, *, seed: int = 0, architecture: str = "bert", spells: bool = False) -> Path:
    """Save a tiny model (two layers, D = 32, four heads) and its tokenizer, and return the folder.

    `spells`: True: other words than `WORDS` are spelled in ASCII characters. False: each of them is one unknown token, so that the
    model cannot tell them apart.
    """
    torch.manual_seed(seed)
    common: dict[str, Any] = {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 72, "initializer_range": 0.3}
    model: Any
    if architecture == "bert":
        model = BertModel(BertConfig(**common, **_SHAPE))
    elif architecture == "roberta":
        model = RobertaModel(RobertaConfig(**common, **_SHAPE, pad_token_id=0))
    elif architecture == "distilbert":
        model = DistilBertModel(DistilBertConfig(**common, dim=32, n_layers=2, n_heads=4, hidden_dim=48))
    elif architecture == "modernbert":
        model = ModernBertModel(ModernBertConfig(**common, **_SHAPE, **_SPECIAL))
    elif architecture == "llama":
        model = LlamaModel(LlamaConfig(**common, **_SHAPE, **_GROUPED))
    elif architecture == "mpnet":
        model = MPNetModel(MPNetConfig(**common, **_SHAPE, pad_token_id=1))
    elif architecture == "deberta-v2":
        model = DebertaV2Model(DebertaV2Config(**common, **_SHAPE, **_RELATIVE))
    elif architecture == "gemma2":
        model = Gemma2Model(Gemma2Config(**common, **_SHAPE, **_GROUPED, head_dim=8))
    else:
        model = Qwen3Model(Qwen3Config(**common, **_SHAPE, **_GROUPED, head_dim=8))
    model.save_pretrained(folder)
    first = (
        ["[UNK]", "[PAD]"] if architecture == "mpnet" else ["[PAD]", "[UNK]"]
    )  # MPNet counts positions from the padding's number, 1
    vocabulary = {word: i for i, word in enumerate([*first, "[CLS]", "[SEP]", *dict.fromkeys(WORDS.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if spells:
        letters = [f"{prefix}{letter}" for letter in map(chr, range(33, 127)) for prefix in ("", "##")]
        vocabulary |= {letter: len(vocabulary) + i for i, letter in enumerate(each for each in letters if each not in vocabulary)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = {"llama": "[CLS] $A", "gemma2": "[CLS] $A", "qwen3": "$A [SEP]"}.get(architecture, "[CLS] $A [SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    side = "left" if architecture in (*DECODERS, "gemma2") else "right"
    saved = cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer, model_max_length=64, padding_side=side, **special)
    saved.save_pretrained(folder)
    return folder


def tasks(count: int, *, ways: int = 3, shots: int = 2) -> list[list[tuple[str, int]]]:
    """Return `count` support sets with texts of different lengths, as (text, class) pairs."""
    words, built = WORDS.split(), []
    for t in range(count):
        pairs = []
        for c in range(ways):
            for k in range(shots):
                start = 5 * t + 11 * c + 3 * k
                drawn = [words[(start + i) % len(words)] for i in range(2 + (t + c + k) % 4)]
                pairs.append((" ".join(drawn), c))
        built.append(pairs)
    return built


def joined(base: Base, model: torch.nn.Module | None = None, *, attention: Attention) -> Base:
    """Return a `Base` like `base`, with this attention implementation and, if given, another `model`."""
    return text_base(model or base.model, cast(TextInputs, base.inputs).tokenizer, base.spec, attention=attention)


@contextmanager
def rows_through(base: Base) -> Iterator[list[int]]:
    """Yield a list to which each pass through the last layer of a tiny BERT appends its number of rows."""
    rows: list[int] = []
    last: torch.nn.Module = base.model.encoder.layer[-1]  # type: ignore[union-attr,index,assignment]

    def append(_module: torch.nn.Module, inputs: Any) -> None:
        packing = current_packing()
        rows.append(inputs[0].shape[0] if packing is None else len(packing.lengths))

    hook = last.register_forward_pre_hook(append)
    try:
        yield rows
    finally:
        hook.remove()
