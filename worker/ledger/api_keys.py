"""API keys: create, find, rotate and revoke them. A secret is shown once; only its hash is stored.

A key has the form `qs_ID_SECRET`: ID is 12 hexadecimal characters, SECRET is 32 random bytes as 43 base64url characters.

All keys are fields of one Redis hash without a TTL, `qs:keys`, by id. No key is ever removed, not even a revoked one. So `Keys.any`
always returns True once a key has been created. Times come from the clock of the Redis server.

Versions before the scopes `read` and `metrics` let every valid key read, and fail on a key with a scope that they do not know. So
the stored field `scopes` has only the scopes that these versions know, and `further_scopes` has the others. They would let a key
without a scope for reading read as well. Therefore the hash of such a key includes the word `metrics`: they refuse the key.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import redis
from pydantic import BaseModel, ConfigDict

from worker.errors import InvalidKey, UnknownKey
from worker.ledger import audit, names
from worker.ledger.clock import server_ms, to_ms

Scope = Literal["read", "adapt", "predict", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
INCLUDED: dict[Scope, tuple[Scope, ...]] = {"adapt": ("read",), "predict": ("read",), "admin": SCOPES}
"""The further scopes that a scope includes."""
_SCOPES_BEFORE = ("adapt", "predict", "admin")
"""The scopes that versions before `read` and `metrics` know."""
DEFAULT_TENANT = "default"
KEY_CACHE_SECONDS = 1.0
"""How long a service may cache a key before it must read it from Redis again, in seconds."""
_FORM = re.compile(r"qs_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
TENANT_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
_RESERVED = ("celery", "worker")
"""Names that no tenant may have, because the Redis keys of the queue and of workers begin with them."""
_NO_SHA256 = "0" * 64


class Key(BaseModel):
    """An API key with a hash in place of its secret. Times are Unix times in ms."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    replaced_by: str | None = None
    """The id of the key that took this one's place when it was rotated."""

    @classmethod
    def parse(cls, stored: bytes) -> "Key":
        """Return the key that `dump` or an earlier version has stored. Scopes of later versions are left out."""
        content = json.loads(stored)
        scopes = {*content["scopes"], *content.pop("further_scopes", ())} or {"read"}  # earlier versions let any key read
        return cls.model_validate({**content, "scopes": [scope for scope in SCOPES if scope in scopes]})

    def dump(self) -> str:
        """Return the form in which the key is stored, which earlier versions can read."""
        content = self.model_dump(exclude_none=True)
        further = [scope for scope in self.scopes if scope not in _SCOPES_BEFORE]
        content["scopes"] = [scope for scope in self.scopes if scope in _SCOPES_BEFORE]
        return json.dumps({**content, "further_scopes": further} if further else content)

    def allows(self, scope: Scope) -> bool:
        """Return True if the key has this scope, or one that includes it."""
        return allows(self.scopes, scope)

    def holds(self, now: int) -> bool:
        """Return True if the key is neither revoked nor expired at `now`, in ms."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Keys:
    """Stores API keys in Redis. Every method raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def create(self, tenant: str, name: str, scopes: Sequence[Scope], *, lives_ms: int | None = None) -> tuple[str, str, Key]:
        """Create an API key. Return its id, the whole key and its stored form.

        The whole key is not stored, so it cannot be read again. `lives_ms`: its lifetime, None for a key that does not
        expire. Raises InvalidKey if the tenant, name, scopes or lifetime is not allowed.
        """
        check_tenant(tenant)
        if not (name.isprintable() and len(name) <= 100):
            raise InvalidKey("name", "at most 100 printable characters", name)
        if not scopes:
            raise InvalidKey("scope", f"at least one of {', '.join(SCOPES)}", "none")
        if lives_ms is not None and not 0 < lives_ms <= 10**14:
            raise InvalidKey("expires", "a lifetime of 1 to 10^14 ms", lives_ms)
        made: list[tuple[str, str, Key]] = []

        def write(pipe: "redis.client.Pipeline") -> None:
            now = to_ms(pipe.time())
            made[:] = [_new_key(pipe, tenant, name, scopes, now, None if lives_ms is None else now + lives_ms)]
            identity, _, key = made[0]
            pipe.multi()
            pipe.hset(names.API_KEYS, identity, key.dump())
            audit.record_in(pipe, tenant, "key.created", identity, {"scopes": key.scopes})

        self._redis.transaction(write, names.API_KEYS)
        return made[0]

    def rotate(self, identity: str, grace_ms: int) -> tuple[str, str, Key]:
        """Create a key in place of another one, which then expires after `grace_ms`.

        Returns what `create` returns. The new key has the tenant, name and scopes of the old one. If the old one was created with a
        lifetime, the new one gets a lifetime of the same length. Raises UnknownKey if there is no such key, and InvalidKey if the
        key is revoked, expired or already rotated, or if the time is not allowed.
        """
        if not 0 <= grace_ms <= 10**14:
            raise InvalidKey("grace", "a time of 0 to 10^14 ms", grace_ms)
        made: list[tuple[str, str, Key]] = []

        def write(pipe: "redis.client.Pipeline") -> None:
            old, now = _read(pipe, identity), to_ms(pipe.time())
            if not old.holds(now) or old.replaced_by is not None:
                state = "rotated already" if old.replaced_by else "revoked" if old.revoked_at is not None else "expired"
                raise InvalidKey("ID", f"a valid key that was not rotated yet ({identity} is {state})", identity)
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            made[:] = [_new_key(pipe, old.tenant, old.name, old.scopes, now, None if lifetime is None else now + lifetime)]
            new_identity, _, key = made[0]
            ends = now + grace_ms if old.expires_at is None else min(old.expires_at, now + grace_ms)
            replaced = old.model_copy(update={"expires_at": ends, "replaced_by": new_identity})
            pipe.multi()
            pipe.hset(names.API_KEYS, mapping={new_identity: key.dump(), identity: replaced.dump()})
            audit.record_in(pipe, old.tenant, "key.rotated", identity, {"to": new_identity, "expires_at": ends})

        self._redis.transaction(write, names.API_KEYS)
        return made[0]

    def any(self) -> bool:
        """Return True if any API key was ever created."""
        return bool(self._redis.exists(names.API_KEYS))

    def find(self, identity: str) -> tuple[Key | None, int]:
        """Return (the key with this id or None, the current time of the Redis server in ms)."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(names.API_KEYS, identity)
            pipe.time()
            stored, time = pipe.execute()
        return None if stored is None else Key.parse(stored), to_ms(time)

    def revoke(self, identity: str) -> bool:
        """Revoke a key permanently. Return False if there is no such key.

        If the key is already revoked, nothing changes.
        """

        def write(pipe: "redis.client.Pipeline") -> None:
            key, now = _read(pipe, identity), to_ms(pipe.time())
            pipe.multi()
            if key.revoked_at is None:
                pipe.hset(names.API_KEYS, identity, key.model_copy(update={"revoked_at": now}).dump())
                audit.record_in(pipe, key.tenant, "key.revoked", identity, {})

        try:
            self._redis.transaction(write, names.API_KEYS)
        except UnknownKey:
            return False
        return True

    def list(self) -> list[tuple[str, Key]]:
        """Return all keys with their ids, the oldest first."""
        stored = cast(dict[bytes, bytes], self._redis.hgetall(names.API_KEYS))
        keys = [(identity.decode(), Key.parse(content)) for identity, content in stored.items()]
        return sorted(keys, key=lambda pair: (pair[1].created_at, pair[0]))

    def now(self) -> int:
        """Return the current time of the Redis server in ms."""
        return server_ms(self._redis)


def parts(presented: str) -> tuple[str, str] | None:
    """Split a key from a request into (id, secret). Return None if it is not of the form `qs_ID_SECRET`."""
    match = _FORM.fullmatch(presented)
    return None if match is None else (match[1], match[2])


def proves(key: Key | None, secret: str) -> bool:
    """Return True if `key` is not None and `secret` is its secret.

    The check takes constant time, so that its duration reveals neither how much of the secret is right nor whether the key exists.
    """
    hashed = _sha256(secret, reads=key is None or key.allows("read"))
    return hmac.compare_digest(_NO_SHA256 if key is None else key.sha256, hashed) and key is not None


def allows(scopes: Sequence[Scope], wanted: Scope) -> bool:
    """Return True if `wanted` is one of the scopes or included in one of them."""
    return wanted in scopes or any(wanted in INCLUDED.get(scope, ()) for scope in scopes)


def check_tenant(tenant: str) -> None:
    """Raise InvalidKey if `tenant` is not allowed as the name of a tenant."""
    if not re.fullmatch(TENANT_PATTERN, tenant) or tenant in _RESERVED:
        expected = f"1 to 63 lowercase letters, digits and dashes, not starting with a dash, and not {' or '.join(_RESERVED)}"
        raise InvalidKey("tenant", expected, tenant)


def _new_key(
    pipe: "redis.client.Pipeline", tenant: str, name: str, scopes: Sequence[Scope], now: int, expires_at: int | None
) -> tuple[str, str, Key]:
    """Return the id of a new key, which no other key has, the whole key and its stored form."""
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    while pipe.hexists(names.API_KEYS, identity):
        identity = secrets.token_hex(6)
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    hashed = _sha256(secret, reads=allows(ordered, "read"))
    key = Key(tenant=tenant, name=name, scopes=ordered, sha256=hashed, created_at=now, expires_at=expires_at)
    return identity, f"qs_{identity}_{secret}", key


def _read(pipe: "redis.client.Pipeline", identity: str) -> Key:
    """Read a key in a transaction that watches the keys. Raises UnknownKey if there is no such key."""
    stored = cast(Any, pipe.hget(names.API_KEYS, identity))
    if stored is None:
        raise UnknownKey(identity)
    return Key.parse(stored)


def _sha256(secret: str, *, reads: bool) -> str:
    """Return the hash of a key's secret. `reads`: True if the key may read."""
    return hashlib.sha256((secret if reads else f"metrics:{secret}").encode()).hexdigest()
