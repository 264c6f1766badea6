"""Mutations of files: changes that disks, editors, exports and attackers make.

Each is a function of (random, content, others)."""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

PIECES = (
    *(b'"', b"'", b'""', b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\\", b"\0", b"\x00\xff", b"\x1b[31m", b"\x1b]0;owned\x07"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"PK\x03\x04", b"\xc3", b"\xed\xa0\xbd", b"\xf0\x9f\x91\x8b"),
    *(text.encode() for text in ("\u202e", "\u2028", "\u0085", "\ufffe", "e\u0301", "नमस्ते", "é")),
    *(b"\\ud83d", b"\\u0000", b"\\u001b[2J", b"sep=;\n", b"NaN", b"Infinity", b"null", b"true", b"-1", b"1e400", b"1e-400"),
    *(b"9" * 400, b"9" * 5_000, b"a" * 3_000, b"[", b"]", b"{", b"}", b"{}", b"[]", b"[" * 3_000, b'{"a":' * 1_500, b"- " * 1_500),
    *(b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['true']", b"!!binary x", b"%YAML 9.9\n---\n", b"? ", b"---\n"),
    *(b"nan", b"2023-13-45", b"__metadata__", b"../../etc/passwd", b"%s%n", b": ", b"#"),
)
"""What is inserted: quotes, separators, marks, escapes, bytes that are no text, huge and special numbers, nesting, YAML tags."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2.5, 1e308, float("nan"), float("-inf"), 2**31, 2**63, 2**70, 10**400, [], {}, [[]], [None]),
    *("", " ", "x", "a" * 2_000, "\0", "\x1b[31m", "\ud83d", "\u202e", {"a": {}}, ["a", "b"], [1, 2], {"kind": "lora"}, "lora"),
)
"""What takes the place of a value in JSON."""


def mutated(rng: random.Random, content: bytes, others: Sequence[bytes], more: Sequence[Mutation] = ()) -> bytes:
    """Return `content` after one to four mutations.

    `others`: files to take parts from. `more`: mutations of the file's format.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        content = rng.choice((*ANY, *more, *more))(rng, content, others)
    return content


def flip_bits(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] if rng.random() < 0.8 else content[at:]


def insert(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(PIECES) * rng.choice((1, 1, 1, 2, 20)) + content[at:]


def prepend(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    return rng.choice(PIECES) + content


def delete(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, content)
    return content[:begin] + content[end:]


def duplicate(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, content)
    return content[:end] + content[begin:end] * rng.choice((1, 1, 2, 50)) + content[end:]


def overwrite(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, content)
    return content[:begin] + rng.choice(PIECES) + content[end:]


def splice(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Join the beginning of one file and the end of another."""
    other = rng.choice(others)
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def shuffle_lines(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    lines = content.splitlines(keepends=True)
    if lines:
        lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))
    return b"".join(lines)


def recode(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Write the text in another encoding."""
    text = content.decode(errors="replace")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "gb18030", "shift-jis")), "replace")


def change_number(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not numbers:
        return content
    found = rng.choice(numbers)
    number = rng.choice((b"0", b"-1", b"1e400", b"NaN", b"9" * 30, b"9" * 5_000, b"0.5", b'"1"', b"1_0", b"null"))
    return content[: found.start()] + number + content[found.end() :]


def change_json(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Replace, remove, rename or repeat one value of a JSON document or of one of its lines."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    for part, put in ((content, None), (lines[at], at)):
        try:
            document = json.loads(part)
        except (ValueError, RecursionError):
            continue
        _change(rng, document)
        try:
            written = json.dumps(document).encode()
        except (ValueError, RecursionError):
            return content
        return written if put is None else b"\n".join([*lines[:put], written, *lines[put + 1 :]])
    return content


def change_header(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Mutate the JSON header of a safetensors file, and state its new length."""
    length = int.from_bytes(content[:8], "little")
    header = rng.choice((change_json, change_json, change_number, insert, delete))(rng, content[8 : 8 + length], others)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _change(rng: random.Random, document: Any) -> None:
    places = [(container, key) for container in _containers(document) for key in _keys(container)]
    if not places:
        return
    container, key = rng.choice(places)
    what = rng.random()
    if what < 0.6:
        container[key] = rng.choice(VALUES)
    elif what < 0.75:
        del container[key]
    elif isinstance(container, dict):
        container[rng.choice((str(key) + "x", "", "\x1b[31m" + "k" * 400, "kind", "__class__"))] = container.pop(key)
    else:
        container.extend([container[key]] * rng.choice((1, 3, 300)))


def _containers(value: Any) -> list[Any]:
    found, stack = [], [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict | list):
            found.append(one)
            stack += one.values() if isinstance(one, dict) else one[:50]
    return found


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def _span(rng: random.Random, content: bytes) -> tuple[int, int]:
    begin = rng.randrange(len(content) + 1)
    return begin, min(len(content), begin + rng.choice((1, 1, 2, 8, 40, 400)))


ANY: tuple[Mutation, ...] = (
    *(flip_bits, truncate, insert, insert, prepend, delete, duplicate, overwrite, splice, shuffle_lines, recode, change_number),
)
"""Mutations of files of any format."""
