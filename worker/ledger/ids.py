"""Make the id of an adapter from all that determines its weights. Torch-free."""

import hashlib
import hmac
import json
import secrets

import redis

from worker.ledger import names
from worker.ledger.messages import JobRecipe

ID_FORMAT = 1
"""Part of every id. A change of how weights follow from a recipe is a new number, so that old ids keep meaning old weights."""


def id_key(client: "redis.Redis") -> bytes:
    """Return the secret that adapter ids are made with. It is created once and kept beside the records."""
    client.set(names.ID_KEY, secrets.token_hex(32), nx=True)
    return bytes.fromhex(names.text(client.get(names.ID_KEY)))


def adapter_id(key: bytes, tenant: str, recipe: JobRecipe) -> str:
    """Return a keyed digest of all that determines the weights (so not of the TTL): the same request gives the same id."""
    identity = recipe.model_dump(mode="json", exclude={"initialization"}, exclude_defaults=True)
    content = json.dumps([ID_FORMAT, tenant, identity], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "a" + hmac.new(key, content.encode(), hashlib.sha256).hexdigest()[:40]
