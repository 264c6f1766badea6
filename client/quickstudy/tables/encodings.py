"""The part of an error message that helps with bytes that are not UTF-8."""

import re
from collections.abc import Callable

from quickstudy.one_line import shown

_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
_NOT_DECODED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as `surrogateescape` represents them
_WORDS = re.compile(r"[^\x00-\x7f]+")
_BEFORE, _AFTER = 10, 14
"""The numbers of characters around the first wrong byte that a message shows."""
_NOT_WESTERN = re.compile("[^\x00-\x7fÀ-ÖØ-ÜßÀ-ïñ-öø-üÿŒœ‘’“”„–—…•·€£§°©®™«»¿¡\xa0]|[a-z][À-Ü]|[a-z][„”][a-z]")
"""Characters and sequences that Western texts do not have, but texts in other encodings that are read as WINDOWS-1252."""
_MARK = re.compile("[\u2000-\u206f\u3000-\u303f\uff00-\uff60]")


def _among(letters: str) -> Callable[[str], bool]:
    return lambda letter: re.match(f"[{letters}]", letter) is not None


def _first_byte(encoding: str, first: int, last: int) -> Callable[[str], bool]:
    """Return a predicate for an encoding's frequent characters, which have first bytes in this range."""
    return lambda letter: first <= letter.encode(encoding)[0] <= last


_CANDIDATES: tuple[tuple[str, float, Callable[[str], bool]], ...] = (
    ("SHIFT-JIS", 0.3, _among("ぁ-ヿ")),
    ("EUC-JP", 0.3, _among("ぁ-ヿ")),
    ("EUC-KR", 0.97, _among("가-힣")),
    ("GB18030", 0.85, _first_byte("GB18030", 0xB0, 0xD7)),
    ("BIG5", 0.85, _first_byte("BIG5", 0xA4, 0xC6)),
    ("WINDOWS-1251", 0.33, _among("оеаинт")),
)
"""Encodings in the order in which they are tried: the name, the least share of usual letters among those beyond ASCII, and the
predicate for usual letters."""


def not_utf8(sample: str, content: str) -> tuple[int, str] | None:
    """Return the position of the first byte that is not UTF-8 and a message about it, or None.

    `content` was decoded with `surrogateescape`. `sample`: the beginning of the same file, which is evidence too. If most words
    beyond ASCII are UTF-8, the message says so. Otherwise, if an encoding is likely, it shows the place in that encoding, so that
    the reader sees whether the guess is right.
    """
    if (found := _NOT_DECODED.search(content)) is None:
        return None
    at = found.start()
    line_start = max(content.rfind("\n", 0, at), content.rfind("\r", 0, at)) + 1
    evidence = sample if content in sample else sample[: sample.rfind("\n") + 1] + content
    before = content[max(line_start, at - 20) : at]
    place = f"after {shown(before)}" if before else "at the beginning of the line"
    words = _WORDS.findall(evidence)
    problem = f"expected UTF-8, got the byte 0x{ord(content[at]) - 0xDC00:02X}"
    if 2 * sum(_NOT_DECODED.search(word) is None for word in words) > len(words):
        return at, f"{problem} {place}; the file is otherwise UTF-8"
    if (encoding := likely_encoding(evidence.encode(errors="surrogateescape"))) is None:
        return at, f"{problem} {place}: convert the file to UTF-8"
    raw = content[line_start:].encode(errors="surrogateescape")
    column = len(content[line_start:at].encode().decode(encoding, "replace"))
    line = (raw.decode(encoding, "replace").splitlines() or [""])[0]
    text = shown(line[max(0, column - _BEFORE) : column + _AFTER])
    return at, f"{problem}; if {text} reads right, convert it with iconv -f {encoding} -t UTF-8"


def likely_encoding(content: bytes) -> str | None:
    """Return the name of the encoding that `content` is most likely in, as `iconv` knows it, or None.

    Western texts have single letters beyond ASCII, texts of other scripts have words of them. An encoding is likely if it decodes
    all bytes, and enough of the characters beyond ASCII are usual ones.
    """
    runs = _BEYOND_ASCII.findall(content)
    if 2 * sum(len(run) == 1 for run in runs) > len(runs):
        decoded = content.decode("WINDOWS-1252", "replace")
        return None if _NOT_WESTERN.search(decoded) else "WINDOWS-1252"
    for name, enough, usual in _CANDIDATES:
        try:
            letters = [letter for letter in content.decode(name) if not letter.isascii() and not _MARK.match(letter)]
        except UnicodeDecodeError:
            continue
        if letters and sum(usual(letter) for letter in letters) >= enough * len(letters):
            return name
    return None
