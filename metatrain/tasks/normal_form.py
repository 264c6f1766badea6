"""The normal form of a text: two texts with one normal form count as the same text.

The normal form ignores case, spaces, Unicode composition, full-width forms, the shape of quotes and dashes, invisible characters,
and punctuation that carries no meaning. It keeps letters of all scripts with their marks, digits, emoji, signs such as `+ - % # =`,
emoticons, and punctuation inside words and numbers (`don't`, `node.js`, `3.5`). If in doubt it keeps a difference.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

NORMAL_FORM = 2
"""The version of these rules. Initializations record it, because the rules decide which texts they are trained on.

Version 1 ignored everything that is not a word character, so that all texts of emoji were one text, and `C++` was `C#`.
"""
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180b-\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
"""Control characters, soft hyphens, zero-width spaces, direction marks, byte-order marks and variation selectors.

Joiners and tag characters are not among them, because they distinguish emoji sequences, and words of Persian and Indic languages.
"""
_ONE_SHAPE = str.maketrans(
    {**dict.fromkeys("‘’‚‛`´", "'"), **dict.fromkeys("“”„‟«»‹›「」『』｢｣", '"'), **dict.fromkeys("‐‑‒–—―−", "-")}
)
_RAISED = ("<super>", "<sub>", "<fraction>")
"""Compatibility decompositions that change the meaning: 10² is not 102. They are not applied."""
_JOINER = "\u034f"
"""The combining grapheme joiner, which is invisible and ends a run of combining marks."""
_MOST_MARKS = 30
_MANY_MARKS = re.compile(r"[\u0300-\U0010ffff]{31}")
"""A cheap test: only such texts can have more than 30 combining marks in a row."""
_QUOTES, _OPENING, _CLOSING = "\"'", "([{", ")]}"
_END_MARKS = ".,;:!?。、।॥۔؟،؛።፣፤፥፧၊။៕។᠂᠃"
"""Punctuation that ends a sentence or a part of it."""
_INNER_MARKS = re.compile("-+|[,;!?。、।॥؟،؛]+")
"""Punctuation that is like a space where it stands between two letters. A dot is not, as in `node.js`."""
_EMOTICON = re.compile(r"[:;=]-?'?[()\[\]{}]+$")


def plain_form(text: str) -> str:
    """Return a text without differences in case, spaces, composition, shape and invisible characters."""
    if not text.isascii():
        text = _composed(text.translate(_ONE_SHAPE))
    folded = _INVISIBLE.sub("", text).casefold()
    return " ".join((folded if folded.isascii() else _composed(folded)).split())


def normal_form(text: str) -> str:
    """Return the normal form of a text. It is empty only if the text has no visible character."""
    plain = plain_form(text)
    words = plain.split(" ")
    kept = [word if word.isalnum() else _bare(words, i) for i, word in enumerate(words)]
    return " ".join(" ".join(kept).split()) or plain


def _composed(text: str) -> str:
    """Return a text in NFKC, except for superscripts, subscripts and fractions, without `_JOINER`."""
    parts = groupby(_stream_safe(text), key=lambda character: unicodedata.decomposition(character).startswith(_RAISED))
    composed = ("".join(part) if is_raised else unicodedata.normalize("NFKC", "".join(part)) for is_raised, part in parts)
    return "".join(composed).replace(_JOINER, "")


def _stream_safe(text: str) -> str:
    """Return a text in the Stream-Safe Text Format of Unicode.

    It has a joiner after each 30 combining marks in a row.
    NFKC sorts the marks of one letter, in a time that grows with the square of their number. A joiner, which is invisible, bounds
    what is sorted. No word of any language has so many marks, so that only texts made to be slow differ from plain NFKC.
    """
    if not _MANY_MARKS.search(text):
        return text
    parts, run = [], 0
    for character in text:
        run = run + 1 if _is_mark(character) else 0
        if run > _MOST_MARKS:
            parts.append(_JOINER)
            run = 1
        parts.append(character)
    return "".join(parts)


@lru_cache(4096)
def _is_mark(character: str) -> bool:
    """Return True for a character that NFKC turns into combining marks, such as half-width voicing marks."""
    return unicodedata.combining(unicodedata.normalize("NFKD", character)[0]) != 0


def _bare(words: Sequence[str], i: int) -> str:
    """Return word `i` of a text without the punctuation that carries no meaning there."""
    word = words[i]
    if all(mark in _END_MARKS + _QUOTES + "-" for mark in word) or word in (*_OPENING, *_CLOSING):
        return word if _is_sign(words, i) else ""
    if not any(_is_content(character) for character in word):
        return word  # an emoticon or another sign, such as `:)` or `/*`
    word = word.lstrip(_QUOTES + _OPENING + "¿¡")
    if word.startswith(".."):
        word = word.lstrip(".")
    if not _EMOTICON.search(word):
        word = _without_end(word)
    if len(word) == 3 and word[1] == "-":
        return word  # `x-y` may be a difference
    return _INNER_MARKS.sub(lambda found: _inner(word, found), word)


def _is_sign(words: Sequence[str], i: int) -> bool:
    """Return True if word `i`, which is only punctuation, may be a sign: a minus, or the colon of `3 : 2`."""
    before, after = (words[i - 1] if i else ""), (words[i + 1] if i + 1 < len(words) else "")
    numbers = (before[-1:].isdigit(), after[:1].isdigit())
    if set(words[i]) == {"-"}:
        return any(numbers) or len(before) == 1 or len(after) == 1
    return all(numbers)


def _is_content(character: str) -> bool:
    """Return True for letters, marks, digits and symbols, which include emoji; False for punctuation."""
    return unicodedata.category(character)[0] in "LMNS"


def _without_end(word: str) -> str:
    """Return a word without the punctuation at its end.

    A quote after a digit stays, because it may mean feet or inches.
    """
    kept = word.rstrip(_QUOTES + _CLOSING + _END_MARKS)
    after = word[len(kept) : len(kept) + 1]
    return kept + after if kept[-1:].isdigit() and after in tuple(_QUOTES) else kept


def _inner(word: str, found: "re.Match[str]") -> str:
    """Return a space for marks between two letters, and otherwise the marks as they are."""
    around = word[found.start() - 1 : found.start()] + word[found.end() : found.end() + 1]
    return " " if len(around) == 2 and all(unicodedata.category(each)[0] in "LM" for each in around) else found[0]
