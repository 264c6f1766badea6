"""Adapter ids, computed from everything that determines an adapter's weights."""

import hashlib
import hmac
import json
import secrets
from typing import cast

import redis

from worker.ledger import names
from worker.ledger.encryption import PLAIN, Cipher
from worker.ledger.messages import JobRecipe

ID_FORMAT = 1
"""A version number that is part of the input of every id. Increase it when a code change leads to different weights for the same
recipe. The new weights then get new ids, and no id ever names two different sets of weights."""


def id_key(client: "redis.Redis", cipher: Cipher = PLAIN) -> bytes:
    """Return the secret key for computing adapter ids. The first call creates it in the records server.

    It is encrypted like examples, because with it, ids could confirm a guess at the examples of an adapter.
    """
    stored = cast(bytes | None, client.get(names.ID_KEY))
    if stored is None:
        client.set(names.ID_KEY, cipher.seal(names.ID_KEY, secrets.token_hex(32).encode()), nx=True)
        stored = cast(bytes, client.get(names.ID_KEY))
    return bytes.fromhex(cipher.open(names.ID_KEY, stored).decode())


def adapter_id(key: bytes, tenant: str, recipe: JobRecipe) -> str:
    """Return the id of an adapter: a keyed digest of everything that determines its weights.

    The TTL and the initialization's name are not part of it, so requests that differ only in these get the same id.
    """
    identity = recipe.model_dump(mode="json", exclude={"initialization"}, exclude_defaults=True)
    content = json.dumps([ID_FORMAT, tenant, identity], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "a" + hmac.new(key, content.encode(), hashlib.sha256).hexdigest()[:40]
