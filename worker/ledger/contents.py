"""All Redis keys of a deployment, by the pattern of their names, and what a backup does with them.

`names.py` describes the keys, and `docs/data.md` says which of them are derived from examples.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from worker.ledger.api_keys import TENANT_PATTERN, Key
from worker.ledger.tenants import is_allowed

RedisType = Literal["string", "hash", "list", "set", "zset", "stream"]
Part = Literal["copied", "records", "last", "weights", "rebuilt", "transient"]
"""What a backup does with a key. `copied` keys come first in the file, then the `records`, each with its `weights`, then what is
read `last`, because records or copied keys need it. Keys that are `rebuilt` follow from the records. What is `transient` is of no
use later."""
_PLACEHOLDERS = {
    "TENANT": TENANT_PATTERN.strip("^$"),
    "ID": "a[0-9a-f]{40}",
    "ALIAS": "[a-z0-9][a-z0-9._-]{0,62}",
    "DIGEST": "[0-9a-f]{64}",
    "FENCE": "[0-9]{1,16}",
    "MINUTE": "[0-9]{1,12}",
    "PASS_KEY": "[^/]*/.*",
    "QUEUE": ".*",
    "…": ".*",
}
_NUMBER, _ADAPTER = re.compile(r"-?[0-9]{1,16}"), re.compile(_PLACEHOLDERS["ID"])
_TARGET = re.compile(rf"{_PLACEHOLDERS['ID']} [0-9]{{1,16}}")
_MEMBER = re.compile(rf"{_PLACEHOLDERS['TENANT']}/{_PLACEHOLDERS['ID']}")
_IDEMPOTENCY = re.compile(rf"qs:{_PLACEHOLDERS['TENANT']}:idempotency:{_PLACEHOLDERS['DIGEST']}")
_DIGEST = re.compile(_PLACEHOLDERS["DIGEST"])


def _anything(value: str) -> bool:
    return True


def _is(pattern: "re.Pattern[str]") -> Callable[[str], bool]:
    return lambda value: pattern.fullmatch(value) is not None


def _is_key(value: str) -> bool:
    Key.model_validate_json(value)  # raises ValueError
    return True


@dataclass(frozen=True)
class Contents:
    """The keys of one pattern.

    `pattern`: as in `names.py`. `part`: what a backup does with them. `check`: returns False or raises ValueError for a value that
    a backup must not contain; of a hash the values are checked, of other collections the members.
    """

    pattern: str
    redis_type: RedisType
    part: Part
    check: Callable[[str], bool] = _anything

    @property
    def regex(self) -> str:
        return "".join(_PLACEHOLDERS.get(part, re.escape(part)) for part in re.split(r"([A-Z_]{2,}|…)", self.pattern))


CONTENTS = (
    Contents("qs:pending", "zset", "rebuilt"),
    Contents("qs:running", "zset", "rebuilt"),
    Contents("qs:dead", "zset", "copied", _is(_MEMBER)),
    Contents("qs:waiting:PASS_KEY", "zset", "rebuilt"),
    Contents("qs:turns_in:QUEUE", "zset", "rebuilt"),
    Contents("qs:turns_idle:QUEUE", "zset", "rebuilt"),
    Contents("qs:waiting_in:TENANT:QUEUE", "zset", "rebuilt"),
    Contents("qs:turn_time:QUEUE", "string", "rebuilt"),
    Contents("qs:retire", "zset", "rebuilt"),
    Contents("qs:counts", "hash", "copied", _is(_NUMBER)),
    Contents("qs:fence", "string", "last", _is(_NUMBER)),
    Contents("qs:sequence", "string", "last", _is(_NUMBER)),
    Contents("qs:queues", "set", "rebuilt"),
    Contents("qs:workers", "zset", "transient"),
    Contents("qs:worker-descriptions", "hash", "transient"),
    Contents("qs:idempotency", "zset", "last", _is(_IDEMPOTENCY)),
    Contents("qs:job-times", "hash", "transient"),
    Contents("qs:erase", "string", "transient"),
    Contents("qs:erase-last", "string", "transient"),
    Contents("qs:initialization_by_digest:DIGEST", "hash", "last"),
    Contents("qs:initialization_set_aside:DIGEST", "hash", "last"),
    Contents("qs:initialization_names", "hash", "copied", _is(_DIGEST)),
    Contents("qs:keys", "hash", "copied", _is_key),
    Contents("qs:key_uses", "hash", "copied"),
    Contents("qs:tenants", "hash", "copied", is_allowed),
    Contents("qs:audit", "stream", "copied"),
    Contents("qs:restored_stream", "stream", "transient"),
    Contents("qs:id-key", "string", "last"),
    Contents("qs:celery:…", "list", "transient"),
    Contents("qs:TENANT:adapter:ID", "hash", "records"),
    Contents("qs:TENANT:adapters", "zset", "copied", _is(_ADAPTER)),
    Contents("qs:TENANT:unfinished", "set", "rebuilt"),
    Contents("qs:TENANT:weighed", "zset", "rebuilt"),
    Contents("qs:TENANT:usage", "hash", "copied", _is(_NUMBER)),
    Contents("qs:TENANT:requests", "hash", "transient"),
    Contents("qs:TENANT:requests:MINUTE", "string", "transient"),  # of earlier versions
    Contents("qs:TENANT:aliases-of:ID", "set", "rebuilt"),
    Contents("qs:TENANT:alias-targets", "hash", "copied", _is(_TARGET)),
    Contents("qs:TENANT:alias-history:ALIAS", "list", "copied", _is(_TARGET)),
    Contents("qs:TENANT:alias-names", "zset", "rebuilt"),
    Contents("qs:TENANT:audit", "stream", "copied"),
    Contents("qs:TENANT:idempotency:DIGEST", "string", "copied"),
    Contents("qs:TENANT:weights:ID:FENCE", "string", "weights"),
)


@cache
def _regex() -> "re.Pattern[str]":
    return re.compile("|".join(f"(?P<c{number}>{contents.regex})" for number, contents in enumerate(CONTENTS)), re.DOTALL)


def contents_of(key: str) -> Contents | None:
    """Return the pattern of a key, or None if it has none."""
    match = _regex().fullmatch(key)
    return None if match is None else CONTENTS[int(str(match.lastgroup)[1:])]
