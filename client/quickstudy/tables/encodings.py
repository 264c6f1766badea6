"""A guess at the encoding of bytes that are not UTF-8, for the hint in an error message."""

import re
from collections.abc import Callable

_ENOUGH = 0.85
"""The share of the characters beyond ASCII that must be usual ones of an encoding's script."""
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")


def likely_encoding(content: bytes) -> str | None:
    """Return the name of the encoding that `content` is most likely in, as `iconv` knows it, or None.

    Western texts have single letters beyond ASCII, texts of other scripts have words of them. An encoding is likely if it decodes
    all bytes, and most of the characters beyond ASCII are usual ones of its script.
    """
    runs = _BEYOND_ASCII.findall(content)
    single = sum(len(run) == 1 for run in runs)
    for name, is_usual in _WESTERN if 2 * single > len(runs) else _OF_SCRIPTS:
        try:
            beyond = [letter for letter in content.decode(name) if not letter.isascii()]
        except UnicodeDecodeError:
            continue
        if beyond and sum(map(is_usual, beyond)) >= _ENOUGH * len(beyond):
            return name
    return None


def _between(*ranges: tuple[str, str]) -> Callable[[str], bool]:
    return lambda letter: any(first <= letter <= last for first, last in ranges)


_KANA = _between(("\u3040", "\u30ff"))
_CJK_MARK = _between(("\u3000", "\u303f"), ("\uff00", "\uffef"))


def _frequent_in(codec: str, first: int, last: int) -> Callable[[str], bool]:
    """Return a predicate that is true for marks and for frequent characters.

    The first byte of a frequent character in `codec` is between `first` and `last`.
    """

    def is_usual(letter: str) -> bool:
        encoded = letter.encode(codec, "ignore")
        return _CJK_MARK(letter) or (len(encoded) == 2 and first <= encoded[0] <= last)

    return is_usual


def _western(letter: str) -> bool:
    return letter.isalpha() or letter in "’‘“”„«»–—…•·€£°§©®™¿¡"


_WESTERN: tuple[tuple[str, Callable[[str], bool]], ...] = (("WINDOWS-1252", _western),)
_OF_SCRIPTS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("EUC-KR", _between(("\uac00", "\ud7a3"))),
    ("SHIFT-JIS", lambda letter: _KANA(letter) or _frequent_in("shift-jis", 0x81, 0x97)(letter)),
    ("WINDOWS-1251", _between(("А", "я"), ("Ё", "Ё"), ("ё", "ё"))),
    ("GB18030", _frequent_in("gb18030", 0xB0, 0xD7)),
    ("BIG5", _frequent_in("big5", 0xA4, 0xC6)),
    *_WESTERN,
)
"""Names and the characters that are usual in a text, in the order in which they are tried."""
