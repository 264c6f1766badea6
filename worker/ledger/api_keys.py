"""API keys, kept beside the records as the hash of a secret that is shown once. Torch-free.

    qs_ + 12 hexadecimal characters, the key's id + _ + 43 base64url characters, its secret: 32 random bytes

All keys are fields of one Redis hash without a TTL, `qs:keys`, by id. None is ever removed, revoked ones stay: so once the first
key was made, `Keys.any` says so for good. Times are the Redis server's.
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

Scope = Literal["adapt", "predict", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_TENANT = "default"
KEY_SECONDS = 1.0
"""How long what was read of a key may be used without looking again."""
_KEYS = "qs:keys"
_FORM = re.compile(r"qs_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
TENANT_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
_RESERVED = ("celery", "worker")
"""Not tenants: Redis keys of the queue and of workers begin as theirs would."""
_NOBODY = "0" * 64


class Key(BaseModel):
    """What is stored of a key, without its secret. Times in ms."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    def holds(self, now: int) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Keys:
    """The keys on one Redis. Every method may raise `redis.RedisError` where it is out of reach."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def create(self, tenant: str, name: str, scopes: Sequence[Scope], *, lives_ms: int | None = None) -> tuple[str, str, Key]:
        """Make a key; returns its id, the whole key, which is nowhere to be read again, and what is stored of it. Raises InvalidKey
        for a tenant, name or life that cannot be."""
        check_tenant(tenant)
        if not (name.isprintable() and len(name) <= 100):
            raise InvalidKey("name", "at most 100 printable characters", name)
        if lives_ms is not None and not 0 < lives_ms <= 10**14:
            raise InvalidKey("expires", "a time from now", lives_ms)
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
        if not self._redis.hsetnx(_KEYS, identity, key.model_dump_json(exclude_none=True)):
            return self.create(tenant, name, scopes, lives_ms=lives_ms)  # an id that is there already, once in 2^48
        return identity, f"qs_{identity}_{secret}", key

    def any(self) -> bool:
        """Whether a key was ever made."""
        return bool(self._redis.exists(_KEYS))

    def find(self, identity: str) -> tuple[Key | None, int]:
        """The key of an id, None where there is none, and the time."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(_KEYS, identity)
            pipe.time()
            stored, (seconds, microseconds) = pipe.execute()
        key = None if stored is None else Key.model_validate_json(stored)
        return key, seconds * 1000 + microseconds // 1000

    def revoke(self, identity: str) -> bool:
        """False where there is no such key. One that is revoked already stays as it was."""
        key, now = self.find(identity)
        if key is not None and key.revoked_at is None:
            self._redis.hset(_KEYS, identity, key.model_copy(update={"revoked_at": now}).model_dump_json(exclude_none=True))
        return key is not None

    def list(self) -> list[tuple[str, Key]]:
        """All of them by id, the oldest first."""
        stored = cast(dict[bytes, bytes], self._redis.hgetall(_KEYS))
        found = [(identity.decode(), Key.model_validate_json(content)) for identity, content in stored.items()]
        return sorted(found, key=lambda pair: (pair[1].created_at, pair[0]))

    def now(self) -> int:
        """The time there, in ms."""
        seconds, microseconds = self._redis.time()
        return int(seconds * 1000 + microseconds // 1000)


def parts(presented: str) -> tuple[str, str] | None:
    """(id, secret) of what has the form of a key."""
    match = _FORM.fullmatch(presented)
    return None if match is None else (match[1], match[2])


def proves(key: Key | None, secret: str) -> bool:
    """Whether the secret is the key's, in a time that does not depend on how much of it is right, nor on whether there is a key."""
    return hmac.compare_digest(_NOBODY if key is None else key.sha256, _sha256(secret)) and key is not None


def check_tenant(tenant: str) -> None:
    """Raises InvalidKey for a name that no tenant can have."""
    if not re.fullmatch(TENANT_PATTERN, tenant) or tenant in _RESERVED:
        expected = f"1 to 63 lowercase letters, digits and dashes, the first no dash, and not {' or '.join(_RESERVED)}"
        raise InvalidKey("tenant", expected, tenant)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
