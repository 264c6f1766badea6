"""API keys: create, find and revoke them. A secret is shown once; only its hash is stored.

A key has the form `qs_ID_SECRET`: ID is 12 hexadecimal characters, SECRET is 32 random bytes as 43 base64url characters.

All keys are fields of one Redis hash without a TTL, `qs:keys`, by id. No key is ever removed, not even a revoked one. So `Keys.any`
always returns True once a key has been created. Times come from the clock of the Redis server.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Literal, cast, get_args

import redis
from pydantic import BaseModel, ConfigDict

from worker.errors import InvalidKey
from worker.ledger import names
from worker.ledger.clock import server_ms, to_ms

Scope = Literal["adapt", "predict", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_TENANT = "default"
KEY_CACHE_SECONDS = 1.0
"""How long a service may cache a key before it must read it from Redis again, in seconds."""
_FORM = re.compile(r"qs_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
TENANT_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
_RESERVED = ("celery", "worker")
"""Names that no tenant may have, because the Redis keys of the queue and of workers begin with them."""
_NO_SHA256 = "0" * 64


class Key(BaseModel):
    """The stored form of an API key: a hash in place of the secret. Times are Unix times in ms."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

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
        expire. Raises InvalidKey if the tenant, name or lifetime is not allowed.
        """
        check_tenant(tenant)
        if not (name.isprintable() and len(name) <= 100):
            raise InvalidKey("name", "at most 100 printable characters", name)
        if lives_ms is not None and not 0 < lives_ms <= 10**14:
            raise InvalidKey("expires", "a lifetime of 1 to 10^14 ms", lives_ms)
        identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        now = self.now()
        key = Key(
            tenant=tenant,
            name=name,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            sha256=_sha256(secret),
            created_at=now,
            expires_at=None if lives_ms is None else now + lives_ms,
        )
        if not self._redis.hsetnx(names.API_KEYS, identity, key.model_dump_json(exclude_none=True)):
            return self.create(tenant, name, scopes, lives_ms=lives_ms)  # the random id was already in use
        return identity, f"qs_{identity}_{secret}", key

    def any(self) -> bool:
        """Return True if any API key was ever created."""
        return bool(self._redis.exists(names.API_KEYS))

    def find(self, identity: str) -> tuple[Key | None, int]:
        """Return (the key with this id or None, the current time of the Redis server in ms)."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(names.API_KEYS, identity)
            pipe.time()
            stored, time = pipe.execute()
        key = None if stored is None else Key.model_validate_json(stored)
        return key, to_ms(time)

    def revoke(self, identity: str) -> bool:
        """Revoke a key permanently. Return False if there is no such key.

        If the key is already revoked, nothing changes.
        """
        key, now = self.find(identity)
        if key is not None and key.revoked_at is None:
            revoked = key.model_copy(update={"revoked_at": now})
            self._redis.hset(names.API_KEYS, identity, revoked.model_dump_json(exclude_none=True))
        return key is not None

    def list(self) -> list[tuple[str, Key]]:
        """Return all keys with their ids, the oldest first."""
        stored = cast(dict[bytes, bytes], self._redis.hgetall(names.API_KEYS))
        keys = [(identity.decode(), Key.model_validate_json(content)) for identity, content in stored.items()]
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
    return hmac.compare_digest(_NO_SHA256 if key is None else key.sha256, _sha256(secret)) and key is not None


def check_tenant(tenant: str) -> None:
    """Raise InvalidKey if `tenant` is not allowed as the name of a tenant."""
    if not re.fullmatch(TENANT_PATTERN, tenant) or tenant in _RESERVED:
        expected = f"1 to 63 lowercase letters, digits and dashes, not starting with a dash, and not {' or '.join(_RESERVED)}"
        raise InvalidKey("tenant", expected, tenant)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
