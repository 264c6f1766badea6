"""Adapter ids, computed from everything that determines an adapter's weights."""

import hashlib
import hmac
import json
import secrets

import redis

from worker.ledger import names
from worker.ledger.messages import JobRecipe

ID_FORMAT = 1
"""A version number that is part of the input of every id. Increase it when a code change leads to different weights for the same
recipe. The new weights then get new ids, and no id ever names two different sets of weights."""


def id_key(client: "redis.Redis") -> bytes:
    """Return the secret key for computing adapter ids. The first call creates it in the records server."""
    client.set(names.ID_KEY, secrets.token_hex(32), nx=True)
    return bytes.fromhex(names.text(client.get(names.ID_KEY)))


def adapter_id(key: bytes, tenant: str, recipe: JobRecipe) -> str:
    """Return the id of an adapter: a keyed digest of everything that determines its weights.

    The TTL and the initialization's name are not part of it, so requests that differ only in these get the same id.
    """
    identity = recipe.model_dump(mode="json", exclude={"initialization"}, exclude_defaults=True)
    content = json.dumps([ID_FORMAT, tenant, identity], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "a" + hmac.new(key, content.encode(), hashlib.sha256).hexdigest()[:40]
