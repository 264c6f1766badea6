"""Long texts are encoded from their beginning, with the rows of the whole texts."""

from typing import Any, cast

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from metatrain.models.base import Base
from metatrain.models.inputs.text import TextInputs, TextRow, closing_tokens

PIECES = (
    "order a pizza",
    "a" * 99,
    "b" * 101,
    "c" * 3_000,
    " " * 700,
    "\n\t \u00a0\u2003",
    "e\u0301" * 40,
    "c" + "\u0301" * 900 + "\u0327",
    "ab" + "\u0301" * 2_000 + "cd",
    "\u200b\u200d\ufeff" * 30,
    "我想订一张机票。" * 50,
    "注文",
    "한국어 \u1112\u1161\u11ab" * 20,
    "👩‍👩‍👧‍👦🏳️‍🌈" * 60,
    "[SEP]",
    " [MASK] [CLS][PAD] ",
    "[SE",
    "P]",
    "[UNK]" * 40,
    "<mask>  <|long special token|>",
    "!?.,;:-–—…" * 30,
    "don't can't won't 3.14 1,000 " * 30,
    "ß\u0130\u01c5ﬁ½" * 50,
    "\x01\x7f\u0085",
    "\U000e0061" * 30,
    "the " * 90,
    "money ",
)
LIMITS = (8, 9, 17, 64, 256)


def whole(inputs: TextInputs, texts: list[str], limit: int) -> list[TextRow]:
    """Encode texts by tokenizing all of each text, as a reference."""
    ids = inputs.tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    kept = inputs.spec.closing_tokens
    return [
        TextRow(row) if len(row) <= limit else TextRow([*row[: limit - kept], *row[len(row) - kept :]], truncated=True)
        for row in ids
    ]


def with_tokenizer(base: Base, tokenizer: Any, closing_tokens: int = 1) -> TextInputs:
    inputs = cast(TextInputs, base.inputs)
    spec = inputs.spec.model_copy(update={"max_length": 256, "closing_tokens": closing_tokens})
    return TextInputs(tokenizer, spec, width=inputs.width, device=inputs.device, dtype=inputs.dtype)


def byte_level(template: str) -> Any:
    """Return a byte-level tokenizer like RoBERTa's, with NFC and long special tokens."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "m"), ("a", "a"), ("aa", "aa"), ("Ġ", "Ġ"), ("Ã", "©")]
    vocabulary = alphabet | {left + right: len(alphabet) + i for i, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast: Any = cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer, **names)
    fast.add_special_tokens({"mask_token": "<mask>", "extra_special_tokens": ["<|long special token|>"]})
    ids = [(token, fast.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, number) for token, number in ids if token in template]
    )
    return fast


BYTES = {
    "bytes": ("<s> $A </s>", 1),
    "bytes without a closing token": ("<s> $A", 1),
    "bytes without a closing token, cut as they are": ("<s> $A", 0),
    "bytes with two closing tokens": ("$A <s> </s>", 2),
}
"""Templates of a byte-level tokenizer, and the number of last tokens that a truncated row keeps."""


@pytest.fixture(scope="module", params=["tiny", "minilm", *BYTES])
def inputs(request: pytest.FixtureRequest, tiny: Base, minilm: Base) -> TextInputs:
    if request.param == "tiny":
        return with_tokenizer(tiny, cast(TextInputs, tiny.inputs).tokenizer)
    if request.param == "minilm":
        return cast(TextInputs, minilm.inputs)
    template, closing = BYTES[request.param]
    return with_tokenizer(tiny, byte_level(template), closing)


def test_a_tokenizer_says_how_many_special_tokens_end_a_row() -> None:
    assert {name: closing_tokens(byte_level(template)) for name, (template, _) in BYTES.items()} == {
        "bytes": 1,
        "bytes without a closing token": 0,
        "bytes without a closing token, cut as they are": 0,
        "bytes with two closing tokens": 2,
    }


texts = st.lists(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=30)), max_size=14).map("".join)
    | st.builds(
        lambda piece, times, end: (piece * times)[:6_000] + end, st.sampled_from(PIECES), st.integers(1, 400), st.text(max_size=9)
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(texts=texts, limit=st.sampled_from(LIMITS))
def test_rows_are_those_of_the_whole_texts(inputs: TextInputs, texts: list[str], limit: int) -> None:
    valid = [text.encode("utf-8", "replace").decode() for text in texts]
    assert inputs.encode(valid, limit) == whole(inputs, valid, limit)


@pytest.mark.parametrize("limit", [8, 64])
def test_lengths_around_the_limit_and_around_every_cut(inputs: TextInputs, limit: int) -> None:
    words = [" ".join(["order"] * n) for n in range(limit - 4, limit + 4)]
    long = [
        (piece * 400)[:n] + " end"
        for piece in PIECES
        for n in (6 * limit + 99, 6 * limit + 100, 6 * limit + 101, 2 * (6 * limit + 100))
    ]
    assert inputs.encode(words + long, limit) == whole(inputs, words + long, limit)


def test_memory_follows_the_limit_and_not_the_texts(minilm: Base) -> None:
    inputs = cast(TextInputs, minilm.inputs)
    texts = ["order 12 pizzas for me " * 4_000] * 200  # 18 MB
    inputs.encode(texts[:64])
    before = psutil.Process().memory_info().rss
    rows = inputs.encode(texts)
    assert all(row.truncated and len(row) == inputs.spec.max_length for row in rows)
    assert psutil.Process().memory_info().rss - before < 100_000_000  # whole texts take 600 MB


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\u00ad\ufeff", "\u0301", "\x01"])
def test_a_text_without_a_token_is_empty_for_the_model(minilm: Base, text: str) -> None:
    (row,) = minilm.inputs.encode([text])
    assert minilm.inputs.is_empty(row) and minilm.inputs.seen(row).tokens == 0


@pytest.mark.parametrize(
    ("text", "tokens", "unknown"),
    [("hello there", 2, 0), ("so 😀 😀", 3, 2), ("[UNK]", 1, 1), ("[SEP]", 1, 0), ("!", 1, 0), ("कि", 2, 0), ("hi\u200b", 1, 0)],
)
def test_what_the_model_sees_is_counted_without_closing_tokens(minilm: Base, text: str, tokens: int, unknown: int) -> None:
    (row,) = minilm.inputs.encode([text])
    seen = minilm.inputs.seen(row)
    assert (seen.tokens, seen.unknown, seen.truncated, minilm.inputs.is_empty(row)) == (tokens, unknown, False, False)


def test_texts_have_one_content_if_the_model_sees_the_same_of_them(minilm: Base) -> None:
    texts = ["Résumé", "resume", "resumes", "word " * 300 + "a", "word " * 300 + "b", "word " * 254]
    upper, lower, plural, long, longer, exact = (minilm.inputs.seen(row) for row in minilm.inputs.encode(texts))
    assert upper.content == lower.content != plural.content
    assert long.content == longer.content == exact.content
    assert (long.truncated, longer.truncated, exact.truncated) == (True, True, False)


def test_a_tokenizer_without_an_unknown_token_knows_every_text(tiny: Base) -> None:
    inputs = with_tokenizer(tiny, byte_level("<s> $A </s>"))
    for text in ("😀", "\u200b", "नमस्ते"):
        (row,) = inputs.encode([text])
        assert inputs.seen(row).tokens >= 1 and inputs.seen(row).unknown == 0
