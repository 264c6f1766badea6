"""Redis URLs of one or several servers, and the ledger on a real Sentinel and a real cluster."""

import os
import signal
import time
from pathlib import Path

import pytest
import redis

from tests.servers import cluster, sentinel, until
from tests.worker.ledger.jobs import DAY, RECIPE
from worker.app import celery_app
from worker.errors import SettingsError, WeightsMissing
from worker.ledger import names
from worker.ledger.messages import ADAPT_TASK, wake_up
from worker.ledger.records import NotReplicated, Records
from worker.ledger.servers import broker, records_client, weights_client
from worker.ledger.weights_cache import WeightStore, weights_digest
from worker.reaper import oldest_wake_up
from worker.settings import WorkerSettings, read_settings

CONTENT = b"weights"


def test_urls_are_parsed_and_invalid_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broker("unix:///tmp/r.sock") == ("redis+socket:///tmp/r.sock", {})
    assert broker("redis://h/1") == ("redis://h/1", {})
    url, options = broker("redis+sentinel://u:p%40s@one:1,[::1]/queue/2")
    assert url == "sentinel://u:p%40s@one:1/2;sentinel://u:p%40s@[::1]:26379/2" and options["master_name"] == "queue"
    monkeypatch.setenv("REDIS_URL", "redis+sentinel://one:1,two:2/queue")
    monkeypatch.setenv("CACHE_URL", "redis+cluster://one,two")
    assert read_settings(WorkerSettings).weights_url == "redis+cluster://one,two"
    unsupported = ("redis+cluster://:secret@one,two", "redis+sentinel://:secret@one", "http://:secret@one")
    for wrong in (*unsupported, "redis+sentinel://:se/cret@one", "redis+sentinel://:se@cret@one", "redis+sentinel://one/q?ssl=1"):
        monkeypatch.setenv("REDIS_URL", wrong)
        with pytest.raises(SettingsError, match=r"REDIS_URL: expected redis://.*, got ") as error:
            read_settings(WorkerSettings)
        assert "cret" not in str(error.value)


def test_accepted_jobs_survive_the_loss_of_the_master_behind_sentinel(tmp_path: Path) -> None:
    with sentinel(tmp_path, "queue") as (url, master, replica):
        records, app = Records(records_client(url), replicas=1), celery_app(url, "q")
        assert records.accept("t", "a1", RECIPE, DAY, (), queue="q") == (True, "queued")
        app.send_task(ADAPT_TASK, kwargs=wake_up("t", "a1"))
        master.kill()
        until(lambda: records.get("t", "a1") is not None)
        assert replica.client.info("replication")["role"] == "master"
        with pytest.raises(NotReplicated, match="on 0 of 1 replicas"):  # written, but lost if this master dies too
            records.accept("t", "a2", RECIPE, DAY, (), queue="q")
        app.send_task(ADAPT_TASK, kwargs=wake_up("t", "a2"))
        # The first wake-up may have been lost with the old master. The second one went to the new master.
        assert oldest_wake_up(records_client(url), "q") in (("t", "a1"), ("t", "a2"))
        app.close()


def test_weights_can_be_stored_on_a_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path) as (url, nodes, form):
        store, digest = WeightStore(weights_client(f"{url},127.0.0.1:1")), weights_digest(CONTENT)
        with pytest.raises(redis.ConnectionError, match="out of reach"):
            store.put("t", "a0", 1, CONTENT, 60_000)  # no node owns a slot yet
        form()
        for number in range(30):
            store.put("t", f"a{number}", 1, CONTENT, 60_000)
        assert min(int(node.client.dbsize()) for node in nodes) > 0
        assert all(store.get("t", f"a{number}", 1, digest) == CONTENT for number in range(30))
        assert store.keep("t", "a3", 1, None) and store.has("t", "a3", 1) and store.keep("t", "a3", 1, 1000)
        store.remove("t", "a3", 1)
        with pytest.raises(WeightsMissing):
            store.get("t", "a3", 1, digest)
        for node in nodes:
            node.kill()
        with pytest.raises(redis.RedisError):
            store.has("t", "a4", 1)


def test_a_call_to_a_frozen_node_of_a_cluster_waits_only_once(tmp_path: Path) -> None:
    """Freeze one of three nodes. A worker's watchdog allows for one time-out."""
    with cluster(tmp_path) as (url, nodes, form):
        form()
        store = WeightStore(weights_client(url, timeout=0.5, connect_timeout=0.5))
        for number in range(10):
            store.put("t", f"a{number}", 1, CONTENT, 60_000)
        owned = nodes[0].client.keys()
        number = next(number for number in range(10) if names.weights("t", f"a{number}", 1).encode() in owned)
        os.kill(nodes[0].process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(redis.RedisError):
            store.put("t", f"a{number}", 1, CONTENT, 60_000)
        assert 0.5 <= time.monotonic() - began < 1.5
        os.kill(nodes[0].process.pid, signal.SIGCONT)
