"""Read the Lua files of `lua/`, one for each atomic step of the ledger, and register them with a Redis client. Torch-free.

Redis runs a script as a whole, so no reader ever sees half of a step. The scripts of one job take these keys first
(`names.job_keys`), and what else they touch after them:

| key | holds |
|---|---|
| `KEYS[1]` | the record |
| `KEYS[2]` | `qs:pending`: unfinished jobs, by when the reaper should look at them |
| `KEYS[3]` | `qs:running`: claimed jobs, by the end of their lease |
| `KEYS[4]` | `qs:counts`: what has happened so far, for `/metrics` |
| `KEYS[5]` | `qs:dead`: jobs that used up their attempts, by when |

`ARGV[1]` is the member, `tenant/adapter_id`. The comment at the head of each file names the rest.

A server without memory refuses a script's first write if that could need some, and none after it. So every script of a job but
`accept` begins with a removal: a job can be ended, handed back or deleted on such a server.
"""

from functools import cache
from pathlib import Path

import redis
from redis.commands.core import Script

FOLDER = Path(__file__).with_name("lua")
SHARED = {
    "accept": ("now", "count", "note", "tenant"),
    "annotate": ("note",),
    "announce_worker": ("now",),
    "claim": ("now", "count"),
    "commit": ("now", "count", "tenant", "held"),
    "delete": ("now", "count", "tenant"),
    "due": ("now",),
    "erased": (),
    "give_up": ("now", "count", "tenant"),
    "hand_back": ("now", "count", "held"),
    "heartbeat": ("now", "count", "held"),
    "pin": ("now", "tenant"),
    "point_alias": (),
    "remove_alias": (),
    "requeue": ("now", "count", "tenant"),
    "revive": ("now", "count", "tenant"),
    "take_requests": (),
    "usage": ("now", "tenant"),
}
"""The files of `lua/shared` that each script starts with. Later ones may use what earlier ones define."""


def register(client: "redis.Redis", name: str) -> Script:
    """Return the script `lua/NAME.lua`, to be called with keys and arguments."""
    return client.register_script(text(name))


@cache
def text(name: str) -> str:
    """Return the whole text of a script as Redis gets it: its shared parts, then its own."""
    return "".join(_code(FOLDER / "shared" / f"{part}.lua") for part in SHARED[name]) + _code(FOLDER / f"{name}.lua")


def _code(path: Path) -> str:
    """Return a file without the comment at its head, so that editing the comment does not change the script's SHA in Redis."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "".join(lines[first:])
