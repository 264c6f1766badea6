"""Conversion of bytes to lines of text: gzip, byte-order marks, and the limits on what is read.

Nothing is read as a whole. A line has a largest length, so memory stays bounded whatever the file contains.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from quickstudy.tables.encodings import not_utf8
from quickstudy.tables.errors import TableError

MAX_CHARACTERS = 1_000_000
"""The largest number of characters of a line, of a row of CSV, and of an object of a JSON array."""
MAX_UNPACKED_BYTES = 1_000_000_000
"""The largest size of the content of a gzip file."""
SAMPLE_BYTES = 65_536
"""The number of bytes at the beginning of a file that its format is inferred from."""
_GZIP = b"\x1f\x8b"
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: save the sheet as CSV",
    b"PAR1": "a Parquet file: save it as CSV or JSON Lines",
    b"ARROW1": "an Arrow file: save it as CSV or JSON Lines",
    b"BZh": "compressed with bzip2: unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz: unpack it, or use gzip",
    b"(\xb5/\xfd": "compressed with zstd: unpack it, or use gzip",
    b"%PDF": "a PDF file",
    b"\x89PNG": "an image",
}
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Readable(Protocol):
    """An open binary file or stream."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Source:
    """The decoded text of one file. `sample`: its beginning, decoded, which `text` has too."""

    name: str
    sample: str
    text: io.TextIOWrapper

    def lines(self) -> Iterator[str]:
        """Yield the lines with their ends, which may be `\\n`, `\\r\\n` or `\\r`.

        Raises TableError with the line's number if it is too long, is not text or cannot be read.
        """
        number = 0
        while line := self._read(lambda: self.text.readline(MAX_CHARACTERS + 1), number + 1):
            number += 1
            if len(line) > MAX_CHARACTERS:
                raise TableError(self.name, f"expected a line of at most {MAX_CHARACTERS:,} characters", number)
            self._check(line, number)
            yield line

    def read(self, size: int, line: int) -> str:
        """Read at most `size` characters. An empty text is the end.

        `line`: the number of the line that they begin in. Raises TableError if they are not text or cannot be read.
        """
        content = self._read(lambda: self.text.read(size), line)
        self._check(content, line)
        return content

    def _read(self, read: Callable[[], str], line: int) -> str:
        try:
            return read()
        except (UnicodeDecodeError, UnicodeError):
            raise TableError(self.name, "expected valid UTF-16, as the file's byte-order mark states, from here on", line) from None
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise TableError(self.name, "the gzip file is damaged or incomplete from here on", line) from None
        except OSError as error:
            raise TableError(self.name, f"cannot be read: {error.strerror or error}", line) from None

    def _check(self, content: str, line: int) -> None:
        """Raise TableError if a text has bytes that are not UTF-8, or a NUL character.

        `line`: the number of the line that the text begins in.
        """
        if "\0" in content:
            line += line_ends(content[: content.index("\0")])
            raise TableError(
                self.name, "has a NUL character: expected a text file, in UTF-8 or in UTF-16 with a byte-order mark", line
            )
        if not content.isascii() and (wrong := not_utf8(self.sample, content)) is not None:
            position, problem = wrong
            raise TableError(self.name, problem, line + line_ends(content[:position]))


def open_source(stream: Readable, name: str) -> Source:
    """Return the text of a stream.

    It is unpacked if it is gzip, and decoded by its byte-order mark, or else as UTF-8.
    Raises TableError for a file of another kind, and for UTF-16 without a mark.
    """
    try:
        unpacked, sample = _unpacked(stream, name)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TableError(name, "the gzip file is damaged or incomplete") from None
    except OSError as error:
        raise TableError(name, f"cannot be read: {error.strerror or error}") from None
    encoding = _encoding(sample, name)
    sample = _with_one_mark(sample)
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    text = io.TextIOWrapper(io.BufferedReader(_Chained(sample, unpacked)), encoding, errors, newline="")
    return Source(name, sample.decode(encoding, errors if errors != "strict" else "replace"), text)


def line_ends(content: str) -> int:
    """Return the number of line ends in a text."""
    return content.count("\n") + content.count("\r") - content.count("\r\n")


def _unpacked(stream: Readable, name: str) -> tuple[Readable, bytes]:
    """Return the stream of the content, unpacked if it is gzip, and its beginning.

    The beginning has been read from the stream.
    """
    sample = _read_fully(stream, SAMPLE_BYTES)
    if not sample.startswith(_GZIP):
        return stream, sample
    unpacked = _Bounded(gzip.GzipFile(fileobj=io.BufferedReader(_Chained(sample, stream))), name)
    sample = _read_fully(unpacked, SAMPLE_BYTES)
    if sample.startswith(_GZIP):
        raise TableError(name, "is compressed twice: unpack it once")
    return unpacked, sample


def _encoding(sample: bytes, name: str) -> str:
    for beginning, what in _OTHER_FILES.items():
        if sample.startswith(beginning):
            raise TableError(name, f"expected CSV, TSV or JSON, got {what}")
    if sample.startswith(_UTF32):
        raise TableError(name, "is UTF-32: convert it to UTF-8")
    if sample.startswith(_UTF16):
        return "utf-16"
    zeros = sample[:1000].count(0)
    if zeros and 3 * zeros > len(sample[:1000]):
        raise TableError(name, "looks like UTF-16 without a byte-order mark, or is not text: convert it to UTF-8")
    return "utf-8-sig"


def _with_one_mark(sample: bytes) -> bytes:
    """Return the beginning of a file without the byte-order marks after the first."""
    mark = next((mark for mark in (codecs.BOM_UTF8, *_UTF16) if sample.startswith(mark)), b"")
    extra = 0
    while mark and sample.startswith(mark, extra + len(mark)):
        extra += len(mark)
    return sample[extra:]


def _read_fully(stream: Readable, size: int) -> bytes:
    """Read `size` bytes, or all if there are fewer. A pipe may deliver fewer bytes at a time."""
    parts, missing = [], size
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class _Bounded:
    """A stream that raises TableError after MAX_UNPACKED_BYTES."""

    def __init__(self, stream: Readable, name: str) -> None:
        self._stream, self._name, self._left = stream, name, MAX_UNPACKED_BYTES

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise TableError(self._name, f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes: unpack it first")
        return content


class _Chained(io.RawIOBase):
    """A raw stream of `first` and then the rest of `stream`.

    Closing it does not close `stream`, which may be standard input.
    """

    def __init__(self, first: bytes, stream: Readable) -> None:
        self._first, self._stream = first, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # io passes a memoryview
        if self._first:
            content, self._first = self._first[: len(buffer)], self._first[len(buffer) :]
        else:
            content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
