"""A rolling upgrade under traffic, forward and back, loses no adapter and answers nothing wrong.

Services and workers of two commits run at once on one Redis server, and are replaced while requests go on. The commits have
different versions of the initialization `default`: the name stays, its digest changes.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import save_initialization
from metatrain.models.base import Base
from tests.conftest import RedisServer
from tests.upgrade.checkout import ROOT, CommitUnavailable, checkout
from tests.upgrade.fleet import Fleet, Part, Version
from tests.upgrade.leftovers import leftovers
from tests.upgrade.traffic import Accepted, Failover, Traffic
from worker.ledger.records import Records

log = logging.getLogger(__name__)
RELEASED = "9fb6cd3"
"""The last released commit. Upgrades from it work in both directions; set it to the new commit at each release."""
BEFORE_STORED_INITIALIZATIONS = "cdc3a26"
"""A released commit that stored no initializations. Upgrades from it work forward only."""
SETTLE_SECONDS = 120.0
_ALIASES = 30
_UNLIMITED = ("MAX_ADAPTERS", "MAX_ADAPTER_BYTES", "MAX_EXAMPLE_BYTES", "MAX_JOBS", "MAX_REQUESTS_A_MINUTE", "MAX_STREAMS")
OLD_TENANT, NEW_TENANT = "old-key", "new-key"
"""Tenants whose API keys were created by the command line of the old and of the new version."""


def save_default(tiny: Base, folder: Path, version: int, name: str = "default") -> str:
    """Save version number `version` of the initialization `default`, and return its digest."""
    update = {name: p + 0.1 * version for name, p in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    init = replace(lora_from_zero(tiny, steps=2), name=name, scale=8.0 * version, base_update=update)
    save_initialization(init, folder / name, tiny.attach(init.delta))
    return init.digest


@contextmanager
def released(commit: str) -> Iterator[Path]:
    """Check out a released commit, and yield its folder. Skip the test if that is not possible."""
    try:
        with checkout(commit) as code:
            yield code
    except CommitUnavailable as error:
        pytest.skip(str(error))


@contextmanager
def upgrade(
    commit: str, tiny_folder: Path, tiny: Base, server: RedisServer, folder: Path
) -> Iterator[tuple[Fleet, Traffic, Version, Version, Part, Part]]:
    """Yield what an upgrade from `commit` needs, with a worker and a service of that commit running.

    The items are the fleet, the traffic (not started), the old version, the new one, the old worker and the old service.
    """
    old_folder, new_folder = folder / "old", folder / "new"
    save_default(tiny, old_folder, 1)
    save_default(tiny, new_folder, 2)
    if commit == BEFORE_STORED_INITIALIZATIONS:  # it stored none, so the new version needs the folder of the old one
        save_default(tiny, new_folder, 1, "default-before")
    common = {"BASE_MODEL": str(tiny_folder), "PRECISION": "float32", "THREADS": "1", "LEASE_SECONDS": "15", "LOG_LEVEL": "WARNING"}
    common |= dict.fromkeys(_UNLIMITED, "0")
    with released(commit) as code:
        old = Version(commit, code, {**common, "INITIALIZATIONS_DIR": str(old_folder)})
        new = Version("here", ROOT, {**common, "INITIALIZATIONS_DIR": str(new_folder)})
        fleet = Fleet(folder, server.url)
        weights = redis.Redis.from_url(server.url)
        try:
            worker, service = fleet.start_worker(old), fleet.start_service(old)
            keys = {OLD_TENANT: fleet.create_key(old, OLD_TENANT), NEW_TENANT: fleet.create_key(new, NEW_TENANT)}
            traffic = Traffic(Failover(lacks_initialization), keys, weights)
            traffic.failover.urls = (service.url,)
            try:
                yield fleet, traffic, old, new, worker, service
            finally:
                traffic.close()
        finally:
            fleet.close()
            weights.close()


def lacks_initialization(answer: httpx.Response) -> bool:
    """Return True if a version that stores no initializations cannot use this adapter."""
    return answer.status_code == 409 and "is not one of this service" in answer.text


def prepare(traffic: Traffic) -> None:
    """Create 120 adapters of which a quarter each is pinned, aliased and evicted, and start the traffic."""
    adapters = [*traffic.adapt_many(OLD_TENANT, range(80)), *traffic.adapt_many(NEW_TENANT, range(40, 80))]
    traffic.wait_ready(adapters)
    traffic.check_all()
    mark(traffic, adapters)
    for support in range(90, 95):
        traffic.adapt_once(OLD_TENANT, support)
    traffic.start()


def mark(traffic: Traffic, adapters: Sequence[Accepted]) -> None:
    """Pin, alias and evict a fourth of the adapters each; also evict some pinned ones."""
    for number, adapter in enumerate(adapters):
        if number % 4 == 0:
            traffic.pin(adapter)
        elif number % 4 == 1 and len(traffic.aliases) < 2 * _ALIASES:
            traffic.move_alias(f"desk-{adapter.support}", adapter)
        if number % 4 == 2 or number % 8 == 0:
            traffic.evict(adapter)


def check(traffic: Traffic) -> None:
    """Wait until no job is left, and fail if anything was lost, wrong or failed."""
    traffic.stop()
    traffic.wait_ready(list(traffic.accepted.values()), SETTLE_SECONDS)
    traffic.check_all()
    traffic.wait_ready(list(traffic.accepted.values()), SETTLE_SECONDS)
    for tenant, alias in traffic.aliases:
        traffic.check_alias(tenant, alias)
    traffic.check_lists()
    traffic.violations.extend(leftovers(traffic.weights, traffic.keys))
    counts = Records(traffic.weights).counts.read()
    ended = {"ready": counts.get("accepted", 0) + counts.get("recomputed", 0), "failed": 0, "dead": 0, "lost_workers": 0}
    told = {name: count for name, count in counts.items() if not name.startswith("stage_")}
    summary = f"{dict(traffic.counts)}, tries that were refused: {dict(traffic.failover.refusals)}, counts: {told}"
    log.info("%s", summary)
    assert not traffic.violations, f"{len(traffic.violations)} violations; {summary}\n" + "\n".join(traffic.violations[:20])
    assert {name: counts.get(name, 0) for name in ended} == ended, summary
    assert counts["now_queued"] == counts["now_running"] == 0, summary
    assert len(traffic.accepted) >= 200 and traffic.counts["evictions"] > 30 and traffic.counts["alias moves"] > 40, summary
    first, second = (traffic.references[200, digest] for digest in sorted(traffic.digests_of_initializations))
    assert first != second  # otherwise a wrong version of the initialization would not be noticed


def switch_services(fleet: Fleet, traffic: Traffic, running: Part, version: Version) -> Part:
    """Replace a service: start the next one, let both serve, stop the first. Return the next one.

    Meanwhile each of them predicts with every adapter, unless it stores no initializations.
    """
    following = fleet.start_service(version)
    traffic.failover.urls = (running.url, following.url)
    traffic.check_all(to=following.url)
    if running.version.name != BEFORE_STORED_INITIALIZATIONS:
        traffic.check_all(to=running.url)
    traffic.repeat_all_once(to=following.url)
    traffic.repeat_all_once(to=running.url)
    fleet.stop(running)  # still in the list of URLs, so that requests run into the stop
    traffic.failover.urls = (following.url,)
    return following


def switch_workers_with_a_gap(fleet: Fleet, traffic: Traffic, running: Part, version: Version, supports: Sequence[int]) -> Part:
    """Stop a worker, queue jobs while there is none, and return the next worker, which must run them."""
    fleet.stop(running)
    queued = [*traffic.adapt_many(OLD_TENANT, supports), *traffic.adapt_many(NEW_TENANT, supports)]
    statuses = [traffic.view(adapter)["status"] for adapter in queued]
    assert set(statuses) == {"queued"}, statuses
    following = fleet.start_worker(version)
    traffic.wait_ready(queued)
    return following


def switch_workers_together(fleet: Fleet, traffic: Traffic, running: Part, version: Version, supports: Sequence[int]) -> Part:
    """Start the next worker beside the first, give work to both, stop the first in the middle of it.

    Return the next one.
    """
    following = fleet.start_worker(version)
    adapters = [*traffic.adapt_many(OLD_TENANT, supports), *traffic.adapt_many(NEW_TENANT, supports)]
    fleet.stop(running)
    traffic.wait_ready(adapters)
    return following


@pytest.mark.long
def test_rolling_forward_back_and_forward_again(tiny_folder: Path, tiny: Base, redis_server: RedisServer, tmp_path: Path) -> None:
    with upgrade(RELEASED, tiny_folder, tiny, redis_server, tmp_path) as (fleet, traffic, old, new, worker, service):
        prepare(traffic)

        worker = switch_workers_with_a_gap(fleet, traffic, worker, new, range(200, 210))
        service = switch_services(fleet, traffic, service, new)
        # The new service has the other version of `default`: the same support sets give other adapters.
        mine = [*traffic.adapt_many(OLD_TENANT, range(200, 220)), *traffic.adapt_many(NEW_TENANT, range(200, 220))]
        traffic.wait_ready(mine)
        mark(traffic, mine)

        # Back: the old worker runs jobs of the new service, with an initialization that it has in no folder.
        worker = switch_workers_with_a_gap(fleet, traffic, worker, old, range(300, 310))
        service = switch_services(fleet, traffic, service, old)
        traffic.wait_ready([*traffic.adapt_many(OLD_TENANT, range(200, 220)), *traffic.adapt_many(NEW_TENANT, range(300, 310))])

        worker = switch_workers_together(fleet, traffic, worker, new, range(400, 410))
        service = switch_services(fleet, traffic, service, new)
        traffic.check_all()
        check(traffic)
        assert traffic.failover.refusals[409] == 0  # both versions can use every adapter
        fleet.stop(service, worker)


@pytest.mark.long
def test_an_upgrade_from_before_initializations_were_stored(
    tiny_folder: Path, tiny: Base, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Follow the steps in CHANGELOG.md: new workers, then the services, then the old workers stop.

    A service of that version cannot use adapters of another version of `default`: while both serve, the client asks the new one.
    """
    commit = BEFORE_STORED_INITIALIZATIONS
    with upgrade(commit, tiny_folder, tiny, redis_server, tmp_path) as (fleet, traffic, _, new, worker, service):
        prepare(traffic)
        new_worker = fleet.start_worker(new)
        adapters = [*traffic.adapt_many(OLD_TENANT, range(200, 220)), *traffic.adapt_many(NEW_TENANT, range(200, 220))]
        traffic.wait_ready(adapters)
        mark(traffic, adapters)
        service = switch_services(fleet, traffic, service, new)
        adapters = [*traffic.adapt_many(OLD_TENANT, range(200, 220)), *traffic.adapt_many(NEW_TENANT, range(200, 220))]
        fleet.stop(worker)
        traffic.wait_ready(adapters)
        mark(traffic, adapters)
        traffic.check_all()
        check(traffic)
        fleet.stop(service, new_worker)
