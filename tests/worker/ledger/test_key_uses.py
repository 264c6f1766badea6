"""The last uses of API keys on a real Redis server."""

import redis

from worker.ledger.api_keys import Keys
from worker.ledger.key_uses import KeyUses


def test_the_latest_use_stays_whichever_process_writes_last(redis_client: "redis.Redis") -> None:
    uses, keys = KeyUses(redis_client), Keys(redis_client)
    assert uses.latest() == {} and uses.since() is None
    before = keys.now()
    uses.record({"0" * 12: 500, "1" * 12: 10_000})
    uses.record({"0" * 12: 60_000, "1" * 12: 0})  # another process, whose latest use of the first key is older
    after, latest, since = keys.now(), uses.latest(), uses.since()
    assert before - 500 <= latest["0" * 12] <= after - 500 and before <= latest["1" * 12] <= after
    assert latest.keys() == {"0" * 12, "1" * 12} and since is not None and before <= since <= after
    uses.record({"2" * 12: 0})
    assert uses.since() == since
