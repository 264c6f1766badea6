"""Write a backup: everything durable of a deployment in one file.

Its services and workers may run meanwhile.

The file is a zip archive with two entries:

- `contents.jsonl`: one JSON object in each line, `{"key", "type", "value"}` and, for keys with a TTL, `expires_at` in ms. A hash is
  an object, a sorted set an object of scores, a stream a list of [id, object]. Bytes that are not UTF-8 are `{"base64": "…"}`. A
  large collection takes several lines.
- `manifest.json`: format, date, counts, the sha256 of the first entry, and the ids of the encryption keys.

Each record is read in one step. Indexes are not in the file: a restore rebuilds them from the records, so they always fit. What
names a record, such as an alias, is read before the records, and what records name, such as initializations, after them. So
a backup contains everything that its records name. Encrypted values stay encrypted.
"""

import base64
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import redis

from worker.errors import InvalidBackup
from worker.ledger import names
from worker.ledger.clock import server_ms
from worker.ledger.contents import Contents, Part, contents_of
from worker.ledger.encryption import sealed_with
from worker.ledger.names import text

FORMAT = 1
CONTENTS_NAME, MANIFEST_NAME = "contents.jsonl", "manifest.json"
_AT_ONCE = 500
"""The number of elements of a collection that one line of the file holds, about."""


@dataclass
class Manifest:
    """The description of a backup in its file.

    `sha256`: of the entry with the contents. `key_ids`: keys that are needed to read it.
    """

    created_at: str
    format: int = FORMAT
    lines: int = 0
    records: int = 0
    weights: int = 0
    left_out: int = 0
    key_ids: list[str] = field(default_factory=list)
    sha256: str = ""


def write_backup(
    path: Path,
    client: "redis.Redis",
    cache: "redis.Redis | None",
    on_progress: Callable[[], object] = lambda: None,
) -> Manifest:
    """Write a backup to a new file with mode 0600.

    `cache`: the server of the weights, or None to leave them out; they can be rebuilt from the records. Calls `on_progress`
    after each line. The file gets its name once it is complete. Raises InvalidBackup if a file of this name exists, OSError and
    redis.RedisError.
    """
    if path.exists():
        raise InvalidBackup(f"expected the name of a new file, got {path}, which exists")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    manifest = Manifest(datetime.now(UTC).isoformat(timespec="seconds"))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            _write_archive(file, manifest, _Reader(client, cache, manifest).lines(), on_progress)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def _write_archive(file: IO[bytes], manifest: Manifest, lines: Iterator[dict[str, Any]], on_progress: Callable[[], object]) -> None:
    digest = hashlib.sha256()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(CONTENTS_NAME, "w", force_zip64=True) as raw, io.BufferedWriter(cast(Any, raw), 2**18) as out:
            for line in lines:
                content = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                digest.update(content)
                out.write(content)
                manifest.lines += 1
                on_progress()
        manifest.sha256 = digest.hexdigest()
        archive.writestr(MANIFEST_NAME, json.dumps(vars(manifest), indent=1))


class _Reader:
    """Reads the lines of a backup from Redis, in three passes over its keys."""

    def __init__(self, client: "redis.Redis", cache: "redis.Redis | None", manifest: Manifest) -> None:
        self._redis, self._cache, self._manifest = client, cache, manifest

    def lines(self) -> Iterator[dict[str, Any]]:
        for key, contents in self._keys("copied"):
            yield from self._read(key, contents)
        for key, _ in self._keys("records"):
            yield from self._read_record(key)
        for key, contents in self._keys("last"):
            yield from self._read(key, contents)

    def _keys(self, part: Part) -> Iterator[tuple[str, Contents]]:
        for raw in self._redis.scan_iter("qs:*", count=_AT_ONCE):
            contents = contents_of(text(raw))
            if contents is None:
                self._manifest.left_out += part == "copied"  # counted in one of the passes
            elif contents.part == part:
                yield text(raw), contents

    def _read_record(self, key: str) -> Iterator[dict[str, Any]]:
        stored = cast(dict[bytes, bytes], self._redis.hgetall(key))
        if not stored:  # deleted meanwhile
            return
        self._manifest.records += 1
        yield {"key": key, "type": "hash", "value": self._encode_fields(stored)}
        if self._cache is None or stored.get(b"status") != b"ready":
            return
        tenant, _, adapter_id = key.removeprefix("qs:").split(":")
        weights = names.weights(tenant, adapter_id, int(stored[b"fence"]))
        for line in self._read_string(weights, self._cache):
            self._manifest.weights += 1
            yield line

    def _read(self, key: str, contents: Contents) -> Iterator[dict[str, Any]]:
        readers = {"hash": self._read_hash, "zset": self._read_sorted_set, "list": self._read_list, "stream": self._read_stream}
        if contents.redis_type == "string":
            yield from self._read_string(key, self._redis)
            return
        for value in readers[contents.redis_type](key):
            yield {"key": key, "type": contents.redis_type, "value": value}

    def _read_string(self, key: str, client: "redis.Redis") -> Iterator[dict[str, Any]]:
        value, left = cast(bytes | None, client.get(key)), client.pttl(key)
        if value is not None and left != -2:
            line = {"key": key, "type": "string", "value": self._encode(value)}
            yield line if left < 0 else {**line, "expires_at": server_ms(client) + left}

    def _read_hash(self, key: str) -> Iterator[Any]:
        for chunk in _chunks(self._redis.hscan_iter(key, count=_AT_ONCE)):
            yield self._encode_fields(dict(chunk))

    def _read_sorted_set(self, key: str) -> Iterator[Any]:
        for chunk in _chunks(self._redis.zscan_iter(key, count=_AT_ONCE)):
            yield {text(member): score for member, score in chunk}

    def _read_list(self, key: str) -> Iterator[Any]:
        yield [self._encode(value) for value in cast(list[bytes], self._redis.lrange(key, 0, -1))]  # all lists are short

    def _read_stream(self, key: str) -> Iterator[Any]:
        start = "-"
        while entries := cast(list[tuple[bytes, dict[bytes, bytes]]], self._redis.xrange(key, start, "+", count=_AT_ONCE)):
            yield [[text(identity), self._encode_fields(fields)] for identity, fields in entries]
            start = f"({text(entries[-1][0])}"

    def _encode_fields(self, fields: dict[bytes, bytes]) -> dict[str, Any]:
        return {text(field): self._encode(value) for field, value in fields.items()}

    def _encode(self, value: bytes) -> Any:
        if (key_id := sealed_with(value)) is not None and key_id not in self._manifest.key_ids:
            self._manifest.key_ids.append(key_id)
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}


def _chunks(items: Iterator[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
