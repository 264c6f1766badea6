"""Read the Lua scripts of the ledger, and register them. Each file in `lua/` is one atomic step.

Redis runs a script atomically, so no reader ever sees a step half done. A script for one job takes these keys first
(`names.job_keys`), then the other keys that it needs:

| key | holds |
|---|---|
| `KEYS[1]` | the record |
| `KEYS[2]` | `qs:pending`: unfinished jobs; score: when the reaper must check them next |
| `KEYS[3]` | `qs:running`: claimed jobs; score: end of the lease |
| `KEYS[4]` | `qs:counts`: event counts, for `/metrics` |
| `KEYS[5]` | `qs:dead`: jobs that used up their attempts; score: when they failed |

`ARGV[1]` is the member, `tenant/adapter_id`. The comment at the top of each file lists the other keys and arguments.

A Redis server that is out of memory refuses a script whose first write may need memory. It does not refuse the later writes of a
script. So the first write of every script for a job, except `accept`, is a removal, if only of a member that does not exist. Jobs
can then be ended, handed back and deleted even on a server that is out of memory. The same holds for scripts that only remove
something.
"""

from functools import cache
from pathlib import Path

import redis
from redis.commands.core import Script

FOLDER = Path(__file__).with_name("lua")
SHARED = {
    "accept": ("now", "member", "turns", "count", "note", "tenant", "idempotency", "limits"),
    "annotate": ("note",),
    "announce_worker": ("now",),
    "claim": ("now", "member", "turns", "count"),
    "commit": ("now", "count", "tenant", "held"),
    "delete": ("now", "member", "turns", "count", "tenant", "audit"),
    "due": ("now", "member", "turns"),
    "erased": (),
    "forget_initialization": ("audit",),
    "give_up": ("now", "member", "turns", "count", "tenant"),
    "hand_back": ("now", "member", "turns", "count", "held"),
    "heartbeat": ("now", "count", "held"),
    "measure_pass": (),
    "pin": ("now", "tenant"),
    "point_alias": ("audit",),
    "refusal": ("now", "tenant", "idempotency", "limits"),
    "queue_depths": ("now", "member"),
    "remove_alias": ("audit",),
    "requeue": ("now", "member", "turns", "count", "tenant"),
    "reseal": ("now", "member", "turns"),
    "restore": ("now", "tenant"),
    "revive": ("now", "member", "turns", "count", "tenant", "audit"),
    "roll_back_alias": ("audit",),
    "swap_stream": (),
    "sweep_idempotency": ("now",),
    "take_requests": ("requests",),
    "unset": ("audit",),
    "usage": ("now", "tenant", "requests"),
    "use_keys": ("now",),
}
"""The files of `lua/shared` that precede each script, in this order. A file may use the definitions of the files before it."""


def register(client: "redis.Redis", name: str) -> Script:
    """Return the script `lua/NAME.lua` as a callable that takes keys and arguments."""
    return client.register_script(text(name))


@cache
def text(name: str) -> str:
    """Return the whole text of a script as it is sent to Redis: its shared files, then its own."""
    return "".join(_code(FOLDER / "shared" / f"{part}.lua") for part in SHARED[name]) + _code(FOLDER / f"{name}.lua")


def _code(path: Path) -> str:
    """Return the text of a Lua file without the comment at its top.

    So editing that comment does not change the script's SHA in Redis.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "".join(lines[first:])
