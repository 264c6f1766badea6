"""Restore a backup (`backup.py`) to a server: check the whole file, then write what it contains.

The file is treated as hostile: its form, keys, types and records are checked before anything is written. Services and workers of
the server may run. Jobs that were unfinished at the time of the backup run again. If a restore is interrupted, repeat it with
`replace`, which deletes what the server has, except for its audit log.
"""

import base64
import contextlib
import hashlib
import io
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis

from worker.errors import EncryptionKeyMissing, InvalidBackup, SealBroken
from worker.ledger import audit, names, scripts
from worker.ledger.backup import CONTENTS_NAME, FORMAT, MANIFEST_NAME
from worker.ledger.clock import server_ms
from worker.ledger.contents import Contents, contents_of
from worker.ledger.encryption import Cipher, field_name
from worker.ledger.idempotency import KEPT_MS
from worker.ledger.messages import JobRecipe
from worker.ledger.names import text
from worker.ledger.record import FIELDS, parse_record, stored_fields
from worker.ledger.records import Records
from worker.ledger.restored_streams import RestoredStreams
from worker.ledger.retention import KEEP_EXPIRED_RECORDS_MS

_LINE_BYTES, _MANIFEST_BYTES = 2**28, 2**20
_WHOLE = re.compile(rb"[0-9]{1,16}")
_WHOLE_FIELDS = (
    *("created_at", "expires_at", "ttl_ms", "attempt", "fence", "cost", "bytes", "example_bytes"),
    *("queued_at", "announced_at", "lease_until", "heard_at", "lost_at"),
)
_STREAM_ID = re.compile(r"[1-9][0-9]{0,14}-[0-9]{1,15}")


@dataclass
class Restored:
    """The numbers of things restored.

    `requeued`: unfinished jobs that run again. `aliases_dropped`: aliases without an adapter.
    """

    records: int = 0
    weights: int = 0
    requeued: int = 0
    aliases_dropped: int = 0


@dataclass(frozen=True)
class _Line:
    """One line of a backup, checked. Values are as Redis takes them."""

    key: str
    contents: Contents
    value: Any
    expires_at: int | None


class BackupFile:
    """A backup file. Opening it checks its form and its manifest.

    Raises InvalidBackup for what is wrong, and EncryptionKeyMissing if `cipher` lacks a key of the backup.
    """

    def __init__(self, path: Path, cipher: Cipher) -> None:
        self._path, self._cipher = path, cipher
        self.name = path.name
        try:
            self._archive = zipfile.ZipFile(path)
            if sorted(self._archive.namelist()) != [CONTENTS_NAME, MANIFEST_NAME]:
                raise InvalidBackup(f"expected an archive with {CONTENTS_NAME} and {MANIFEST_NAME}, got one with other entries")
            with self._archive.open(MANIFEST_NAME) as file:
                self.manifest = _manifest(file.read(_MANIFEST_BYTES + 1))
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise InvalidBackup(f"expected a backup file, got {type(error).__name__} for {path}") from None
        lacking = sorted(set(self.manifest["key_ids"]) - set(cipher.key_ids))
        if lacking:
            raise EncryptionKeyMissing(f"the backup is encrypted with key {lacking[0]}, which is not in ENCRYPTION_KEY_FILE")

    def check(self, on_progress: Callable[[], object] = lambda: None) -> None:
        """Check every line, and the sha256 of all of them. Raises InvalidBackup and EncryptionKeyMissing."""
        for line in self.lines():
            if line.contents.part == "records":
                self._check_record(line)
            on_progress()

    def lines(self) -> Iterator[_Line]:
        """Yield all lines.

        Raises InvalidBackup at the first wrong one, and at the end if the manifest does not fit.
        """
        digest, number = hashlib.sha256(), 0
        try:
            with self._archive.open(CONTENTS_NAME) as raw, io.BufferedReader(cast(Any, raw), 2**18) as file:
                while content := file.readline(_LINE_BYTES + 1):
                    number += 1
                    if len(content) > _LINE_BYTES:
                        raise InvalidBackup(f"line {number}: expected at most {_LINE_BYTES} bytes, got more")
                    digest.update(content)
                    yield _parse_line(content, number)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InvalidBackup(f"expected a backup file, got {type(error).__name__} after line {number}") from None
        if number != self.manifest["lines"] or digest.hexdigest() != self.manifest["sha256"]:
            raise InvalidBackup("the contents are not those that the manifest describes: the file was changed or cut")

    def _check_record(self, line: _Line) -> None:
        """Check that a record can be read, with its recipe."""
        stored, key = line.value, line.key
        _, tenant, _, adapter_id = key.split(":")
        for name in _WHOLE_FIELDS:
            if name in stored and not _WHOLE.fullmatch(stored[name]):
                raise InvalidBackup(f"{key}: {name}: expected a whole number, got something else")
        try:
            recipe = JobRecipe.model_validate_json(self._cipher.open(field_name(key, "recipe"), stored["recipe"]))
            fields = stored_fields(key, [stored.get(name) for name in FIELDS], self._cipher)
            fields.setdefault("summary", recipe.summary.model_dump_json())
            record = parse_record(tenant, adapter_id, fields, 0)
        except EncryptionKeyMissing:
            raise
        except (SealBroken, KeyError, ValueError, TypeError) as error:  # whose message may quote an example
            raise InvalidBackup(f"{key}: expected a record, got one that cannot be read: {type(error).__name__}") from None
        if recipe.initialization_digest != record.summary.initialization_digest:
            raise InvalidBackup(f"{key}: the summary does not fit the recipe")
        if stored.get("initialization_digest", digest := recipe.initialization_digest.encode()) != digest:
            raise InvalidBackup(f"{key}: initialization_digest: expected the one of the recipe, got another one")


class Restore:
    """Writes backups to the records in `client` and the weights in `cache`.

    Every method may raise `redis.RedisError`.
    """

    def __init__(self, client: "redis.Redis", cache: "redis.Redis") -> None:
        self._redis, self._cache = client, cache
        self._records = Records(client)
        self._restore = scripts.register(client, "restore")
        self._streams = RestoredStreams(client)
        self._unnumbered: list[tuple[int, str, str]] = []
        """(time of its creation, tenant, adapter id) of each record that is not in its tenant's list of adapters."""

    def is_occupied(self) -> bool:
        """Return True if the server already has records, aliases, API keys or settings of tenants."""
        patterns = (names.record("*", "*"), names.alias_targets("*"))
        found = itertools.chain.from_iterable(self._redis.scan_iter(pattern, count=500) for pattern in patterns)
        return self._records_exist(found) or bool(self._redis.exists(names.API_KEYS, names.TENANTS))

    @staticmethod
    def _records_exist(keys: Iterator[bytes]) -> bool:
        return any(contents_of(text(key)) is not None for key in keys)

    def restore(self, backup: BackupFile, *, replace: bool, on_progress: Callable[[], object] = lambda: None) -> Restored:
        """Write a backup that `BackupFile.check` has accepted.

        `replace`: first delete what the server has, except for its audit log. Otherwise raises InvalidBackup if it has records,
        aliases, API keys or settings of tenants. The entries of the audit log are added to those of the server, and at the end one
        for the restore.
        """
        if replace:
            self._clear()
        elif self.is_occupied():
            raise InvalidBackup(
                "expected a server without records, API keys and limits of tenants, got one that has some; --replace deletes them"
            )
        done, unfinished, before = Restored(), list[tuple[str, str]](), ""
        numbers: dict[str, int] = {}
        for line in backup.lines():
            if line.key in (names.FENCE, names.SEQUENCE):
                numbers[line.key] = int(line.value)
            elif line.contents.part == "records":
                done.records += 1
                unfinished += self._write_record(line)
            elif line.contents.part == "weights":
                done.weights += self._write_string(line, self._cache)
            elif line.contents.redis_type == "stream":
                self._streams.add(line.key, line.value)
            else:
                self._write(line, is_first=line.key != before)
            before = line.key
            on_progress()
        self._streams.flush()
        self._raise_numbers(numbers)
        self._number_records()
        self._index_idempotency_keys()
        done.aliases_dropped = self._rebuild()
        for tenant, adapter_id in unfinished:
            done.requeued += self._records.dead_jobs.revive(tenant, adapter_id, is_audited=False)
        self._redis.hincrby(names.COUNTS, "revived", -done.requeued)  # they were not dead
        if replace:
            self._remove_unused_weights()
        with self._redis.pipeline() as pipe:
            details = {"records": done.records, "sha256": backup.manifest["sha256"], "replaced": replace}
            audit.record_in(pipe, "", "backup.restored", backup.name, details)
            pipe.execute()
        return done

    def _clear(self) -> None:
        """Delete everything but weights, wake-ups, the list of live workers and the audit log.

        A worker then has it erased from the append-only file.
        """
        for key in self._redis.scan_iter("qs:*", count=500):
            contents = contents_of(text(key))
            kept = contents is None or contents.part in ("transient", "weights") or contents.redis_type == "stream"
            if not kept:
                self._redis.delete(key)
        now = server_ms(self._redis)
        self._redis.set(names.ERASE, now)
        self._redis.set(names.ERASE_LAST, now)

    def _write_record(self, line: _Line) -> list[tuple[str, str]]:
        """Write a record. Return its (tenant, adapter id) in a list if its job is unfinished."""
        _, tenant, _, adapter_id = line.key.split(":")
        keys = [*names.job_keys(tenant, adapter_id), names.adapters(tenant), names.RETIRE, names.QUEUES]
        flat = [part for pair in line.value.items() for part in pair]
        arguments: list[Any] = [names.member(tenant, adapter_id), adapter_id, KEEP_EXPIRED_RECORDS_MS, *flat]
        is_unfinished, is_numbered = self._restore(keys=keys, args=arguments)
        if not is_numbered:
            self._unnumbered.append((int(line.value["created_at"]), tenant, adapter_id))
        return [(tenant, adapter_id)] if is_unfinished else []

    def _write(self, line: _Line, *, is_first: bool) -> None:
        key, value = line.key, line.value
        if is_first:
            self._redis.delete(key)
        match line.contents.redis_type:
            case "string":
                self._write_string(line, self._redis)
            case "hash":
                if key.endswith(":usage"):  # the sizes follow from the records
                    value = {name: number for name, number in value.items() if name not in ("bytes", "example_bytes")}
                if key.startswith(names.initialization_set_aside("")):
                    key = names.initialization(key.removeprefix(names.initialization_set_aside("")))
                if value:
                    self._redis.hset(key, mapping=value)
            case "zset":
                self._redis.zadd(key, value)
            case "list":
                self._redis.rpush(key, *value)

    def _write_string(self, line: _Line, client: "redis.Redis") -> bool:
        if line.expires_at is not None and line.expires_at <= server_ms(client):
            return False
        return bool(client.set(line.key, line.value, pxat=line.expires_at))

    def _raise_numbers(self, numbers: dict[str, int]) -> None:
        """Raise the fence to the present time, so that none is used again, and the sequence likewise.

        The sequence becomes the largest number in use. `numbers`: the two numbers of the backup, by key.
        """
        fence, last = (int(cast(bytes | None, self._redis.get(key)) or 0) for key in (names.FENCE, names.SEQUENCE))
        fence, last = max(fence, numbers.get(names.FENCE, 0)), max(last, numbers.get(names.SEQUENCE, 0))
        self._redis.set(names.FENCE, max(fence, server_ms(self._redis)))
        for key in self._of("qs:TENANT:adapters"):
            highest = cast(list[tuple[bytes, float]], self._redis.zrevrange(key, 0, 0, withscores=True))
            last = max([last, *(int(score) for _, score in highest)])
        self._redis.set(names.SEQUENCE, last)

    def _number_records(self) -> None:
        """Add the adapters that are in no list to the list of their tenant.

        They were created during the backup, after the list was read. So they are the newest ones.
        """
        for _, tenant, adapter_id in sorted(self._unnumbered):
            self._redis.zadd(names.adapters(tenant), {adapter_id: self._redis.incr(names.SEQUENCE)}, nx=True)

    def _index_idempotency_keys(self) -> None:
        """Give each idempotency key without a time of its removal a new one.

        The reaper may have removed its time during the backup or the restore.
        """
        removal = server_ms(self._redis) + KEPT_MS
        for key in self._redis.scan_iter(names.idempotency("*", "*"), count=500):
            if (contents := contents_of(text(key))) is not None and contents.pattern == "qs:TENANT:idempotency:DIGEST":
                self._redis.zadd(names.IDEMPOTENCY, {text(key): removal}, nx=True)

    def _rebuild(self) -> int:
        """Rebuild the indexes of aliases, and remove what names an adapter that the backup lacks.

        Returns the number of such aliases.
        """
        dropped = 0
        for key in self._of("qs:TENANT:alias-targets"):
            tenant = key.split(":")[1]
            for raw, target in self._redis.hscan_iter(key, count=500):
                alias, adapter_id = text(raw), text(target).split(" ")[0]
                if self._redis.exists(names.record(tenant, adapter_id)):
                    self._redis.sadd(names.aliases_of(tenant, adapter_id), alias)
                    self._redis.zadd(names.alias_names(tenant), {alias: 0})
                else:
                    self._redis.hdel(key, alias)
                    self._redis.delete(names.alias_history(tenant, alias))
                    dropped += 1
        for key in self._of("qs:TENANT:adapters"):
            tenant = key.split(":")[1]
            for raw, _ in self._redis.zscan_iter(key, count=500):
                if not self._redis.exists(names.record(tenant, text(raw))):
                    self._redis.zrem(key, raw)
        for raw, _ in self._redis.zscan_iter(names.DEAD, count=500):
            if self._redis.hget(names.record(*names.split_member(raw)), "status") != b"failed":
                self._redis.zrem(names.DEAD, raw)
        return dropped

    def _of(self, pattern: str) -> list[str]:
        keys = {text(key) for key in self._redis.scan_iter(pattern.replace("TENANT", "*"), count=500)}
        return sorted(key for key in keys if (contents := contents_of(key)) is not None and contents.pattern == pattern)

    def _remove_unused_weights(self) -> None:
        """Remove the weights of records that were replaced."""
        for raw in self._cache.scan_iter("qs:*:weights:*", count=500):
            contents = contents_of(text(raw))
            if contents is not None and contents.part == "weights":
                _, tenant, _, adapter_id, fence = text(raw).split(":")
                if self._redis.hget(names.record(tenant, adapter_id), "fence") != fence.encode():
                    self._cache.delete(raw)


def _manifest(content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content) if len(content) <= _MANIFEST_BYTES else None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise InvalidBackup(f"{MANIFEST_NAME}: expected a JSON object, got something else")
    if manifest.get("format") != FORMAT:
        raise InvalidBackup(
            f"format: expected {FORMAT}, got {str(manifest.get('format'))[:20]!r}; use the version that wrote the file"
        )
    key_ids = manifest.get("key_ids")
    if not (isinstance(key_ids, list) and all(isinstance(key, str) for key in key_ids)):
        raise InvalidBackup("key_ids: expected a list of texts, got something else")
    return {"lines": manifest.get("lines"), "sha256": manifest.get("sha256"), "key_ids": key_ids, **manifest}


def _parse_line(content: bytes, number: int) -> _Line:
    """Parse one line of a backup. Raises InvalidBackup if its key, type or value must not be in one."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        document = json.loads(content)
        key, expires_at = document["key"], document.get("expires_at")
        contents = contents_of(key)
        if contents is None or contents.part in ("rebuilt", "transient"):
            raise InvalidBackup(f"line {number}: key: expected one that backups contain, got {str(key)[:80]!r}")
        if document["type"] != contents.redis_type:
            raise InvalidBackup(f"line {number}: type: expected {contents.redis_type}, got {str(document['type'])[:20]!r}")
        if expires_at is not None and (type(expires_at) is not int or not 0 < expires_at < 10**16):
            raise ValueError
        return _Line(key, contents, _value(document["value"], contents), expires_at)
    raise InvalidBackup(f"line {number}: expected a key, a type and a value, got something else")


def _value(value: Any, contents: Contents) -> Any:
    """Return the value of a line as Redis takes it.

    Raises ValueError or TypeError if it does not have the type of the key.
    """
    match contents.redis_type, value:
        case "string", _:
            return _checked(_decode(value), contents)
        case "hash", dict() if value:
            return {field: _checked(_decode(item), contents) for field, item in value.items()}
        case "zset", dict() if value:
            scores = {member: float(score) for member, score in value.items()}
            if all(score == score and _checked(member.encode(), contents) for member, score in scores.items()):
                return scores
        case "list", list() if value:
            return [_checked(_decode(item), contents) for item in value]
        case "stream", list() if value and all(_STREAM_ID.fullmatch(identity) and fields for identity, fields in value):
            return [(identity, {name: _decode(item) for name, item in fields.items()}) for identity, fields in value]
    raise ValueError


def _checked(value: bytes, contents: Contents) -> bytes:
    if not contents.check(value.decode("utf-8", "replace")):
        raise ValueError
    return value


def _decode(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return base64.b64decode(value["base64"], validate=True)
    raise ValueError
