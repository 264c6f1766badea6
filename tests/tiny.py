"""A tiny real base model: random BERT, a word tokenizer, saved and loaded like any other."""

from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = """
i want to please my card account money lost send close open order pizza book table flight cancel the a today now help refund
reset password login sign in out play music song weather rain lights on off turn call taxi train ticket late early
"""


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Two layers, D = 32, four heads."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = BertModel(config)
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def tasks(count: int, *, ways: int = 3, shots: int = 2) -> list[list[tuple[str, int]]]:
    """Support sets of different texts and lengths."""
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
