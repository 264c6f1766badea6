"""The batcher: turns of tenants, order of calls, limits of a batch, and cancelled or removed calls."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from service.predicting.batcher import Batcher


@dataclass(eq=False)
class Call:
    key: str
    lengths: list[int]
    began: float = 0.0
    pending: bool = True
    tenant: str = "t"
    share: int = 1

    def is_pending(self) -> bool:
        return self.pending


def rows_by_call(batch: list[tuple[Call, range]]) -> list[tuple[str, list[int]]]:
    return [(call.key, list(rows)) for call, rows in batch]


def test_equal_calls_keep_their_order_small_ones_overtake_and_none_starves() -> None:
    batcher: Batcher[Call] = Batcher(tokens=1000, rows=6, adapters=8)
    for call in (Call("large", [1] * 20, 0.0), Call("first", [1] * 3, 0.05), Call("second", [1] * 3, 0.06), Call("late", [1], 0.2)):
        batcher.add(call)
    assert batcher.full()
    assert rows_by_call(batcher.next()) == [("first", [0, 1, 2]), ("second", [0, 1, 2])]
    assert rows_by_call(batcher.next()) == [
        ("large", [0, 1, 2, 3, 4, 5])
    ]  # 20 rows of 5 ms: the call is due at 0.1 s, before the call that arrived at 0.2 s
    batcher.add(Call("later", [1], 0.3))
    assert rows_by_call(batcher.next()) == [("large", [6, 7, 8, 9, 10, 11])]


def test_a_batch_respects_the_limits_but_has_at_least_one_row() -> None:
    batcher: Batcher[Call] = Batcher(tokens=10, rows=64, adapters=2)
    for call in (Call("a", [50, 4], 1.0), Call("b", [4], 2.0), Call("c", [1], 3.0)):
        batcher.add(call)
    assert rows_by_call(batcher.next()) == [("a", [0])]  # a single row above the token limit still runs, alone
    assert rows_by_call(batcher.next()) == [("a", [1]), ("b", [0])]  # at most two adapters in a batch
    assert rows_by_call(batcher.next()) == [("c", [0])]


def test_cancelled_and_removed_calls_free_their_rows() -> None:
    batcher: Batcher[Call] = Batcher(tokens=100, rows=4, adapters=4)
    cancelled, stays, removed = Call("cancelled", [1] * 50, 1.0), Call("stays", [1] * 3, 2.0), Call("removed", [1] * 3, 3.0)
    for call in (cancelled, stays, removed):
        batcher.add(call)
    assert rows_by_call(batcher.next()) == [("cancelled", [0, 1, 2, 3])]
    cancelled.pending = False
    batcher.remove(removed)
    assert rows_by_call(batcher.next()) == [("stays", [0, 1, 2])]
    assert len(batcher) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdeABC"), st.lists(st.integers(1, 30), min_size=1, max_size=12)), min_size=1, max_size=10
    ),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 5),
    st.none() | st.integers(0, 80),
)
def test_every_row_is_in_exactly_one_batch_in_order_and_within_the_limits(
    calls: list[tuple[str, list[int]]], tokens: int, most: int, adapters: int, least: int | None
) -> None:
    batcher: Batcher[Call] = Batcher(tokens, most, adapters)
    waiting = [Call(key, lengths, float(n), tenant=key.lower()) for n, (key, lengths) in enumerate(calls)]
    for call in waiting:
        batcher.add(call)
    batched: dict[int, list[int]] = {id(call): [] for call in waiting}
    while len(batcher):
        batch = batcher.next(least)
        lengths = [call.lengths[row] for call, rows in batch for row in rows]
        assert 1 <= len(lengths) <= most and (sum(lengths) <= tokens or len(lengths) == 1)
        assert len({call.key for call, _ in batch}) <= adapters
        for call, rows in batch:
            batched[id(call)] += rows
    assert all(batched[id(call)] == list(range(len(call.lengths))) for call in waiting)


def tokens_by_tenant(batch: list[tuple[Call, range]]) -> Counter[str]:
    tokens: Counter[str] = Counter()
    for call, rows in batch:
        tokens[call.tenant] += sum(call.lengths[row] for row in rows)
    return tokens


def test_a_tenant_that_comes_later_is_in_the_next_batch_and_heavy_ones_share_equally() -> None:
    batcher: Batcher[Call] = Batcher(tokens=100, rows=64, adapters=8)
    for tenant, length in (("one", 10), ("two", 5)):
        batcher.add(Call(tenant, [length] * 100, tenant=tenant))
    first = Counter[str]()
    for _ in range(5):
        first += tokens_by_tenant(batcher.next())
    assert first == {"one": 250, "two": 250}
    batcher.add(Call("quiet", [4], tenant="quiet"))
    batch = tokens_by_tenant(batcher.next())
    assert batch["quiet"] == 4 and batch["one"] + batch["two"] >= 85
    batcher.add(Call("quiet", [4], tenant="quiet"))
    assert tokens_by_tenant(batcher.next())["quiet"] == 4


def test_a_share_of_two_gets_twice_as_many_tokens() -> None:
    batcher: Batcher[Call] = Batcher(90, 90, 8)
    for tenant, share in (("large", 2), ("small", 1)):
        batcher.add(Call(tenant, [1] * 200, tenant=tenant, share=share))
    assert tokens_by_tenant(batcher.next()) == {"large": 60, "small": 30}


def test_a_small_call_does_not_wait_for_a_full_batch_of_others() -> None:
    batcher: Batcher[Call] = Batcher(tokens=1000, rows=500, adapters=8)
    batcher.add(Call("busy", [10] * 300, tenant="busy"))
    batcher.add(Call("quiet", [12], tenant="quiet"))
    batch = tokens_by_tenant(batcher.next(least_tokens=60))
    assert batch == {"quiet": 12, "busy": 30}  # 30 each, so that the batch is an efficient one
    assert tokens_by_tenant(batcher.next(least_tokens=60)) == {"busy": 1000}  # alone, it fills the batch


def test_a_tenant_gains_nothing_by_sending_its_rows_one_at_a_time() -> None:
    batcher: Batcher[Call] = Batcher(tokens=10, rows=1, adapters=8)
    batcher.add(Call("patient", [10] * 50, tenant="patient"))
    served = Counter[str]()
    for _ in range(40):
        if not any(flow.entries for name, flow in batcher._flows.items() if name == "hasty"):
            batcher.add(Call("hasty", [10], tenant="hasty"))
        served += tokens_by_tenant(batcher.next())
    assert abs(served["hasty"] - served["patient"]) <= 20


@given(
    st.lists(st.lists(st.integers(1, 20), min_size=40, max_size=60), min_size=2, max_size=4),
    st.integers(20, 60),
)
def test_tenants_that_all_wait_differ_by_at_most_their_longest_rows(tenants: list[list[int]], tokens: int) -> None:
    """Check the bound of start-time fair queueing (theorem 1 of the paper).

    The tokens that two tenants received while both had waiting rows differ by at most the sum of their longest rows.
    """
    batcher: Batcher[Call] = Batcher(tokens, 1, 8)
    for number, lengths in enumerate(tenants):
        batcher.add(Call(str(number), lengths, tenant=str(number)))
    served, left = Counter[str](), {str(n): len(lengths) for n, lengths in enumerate(tenants)}
    while all(left.values()):
        [(call, rows)] = batcher.next()
        served[call.tenant] += sum(call.lengths[row] for row in rows)
        left[call.tenant] -= len(rows)
        for a, one in enumerate(tenants):
            for b, other in enumerate(tenants):
                assert abs(served[str(a)] - served[str(b)]) <= max(one) + max(other)


def test_the_backlog_counts_as_much_of_others_as_of_the_tenant_itself() -> None:
    batcher: Batcher[Call] = Batcher(100, 64, 8)
    batcher.add(Call("busy", [10] * 30, tenant="busy"))
    batcher.add(Call("quiet", [4], tenant="quiet"))
    assert (batcher.backlog("quiet", 1), batcher.backlog("busy", 1), batcher.backlog("new", 1, 7)) == (8, 304, 7 + 7 + 4)
    assert (batcher.backlog("new", 2, 8), batcher.backlog("quiet", 2)) == (8 + 4 + 4, 4 + 2)  # a share of two waits for half
    assert batcher.waiting_tokens == 304


def test_tenants_are_forgotten_once_nothing_waits_and_nobody_pays_for_what_it_got_alone() -> None:
    batcher: Batcher[Call] = Batcher(tokens=1000, rows=64, adapters=8)
    for tenant in map(str, range(50)):
        batcher.add(Call(tenant, [10], tenant=tenant))
    while len(batcher):
        batcher.next()
    assert batcher._flows == {}
    batcher.add(Call("early", [1000], tenant="early"))
    assert tokens_by_tenant(batcher.next()) == {"early": 1000}
    for tenant in ("early", "late"):
        batcher.add(Call(tenant, [10] * 100, tenant=tenant))
    assert tokens_by_tenant(batcher.next()) == {"early": 320, "late": 320}


def test_a_long_row_of_another_does_not_pad_a_small_call() -> None:
    batcher: Batcher[Call] = Batcher(tokens=1000, rows=64, adapters=8)
    batcher.add(Call("busy", [250] * 30, tenant="busy"))
    assert tokens_by_tenant(batcher.next(least_tokens=300)) == {"busy": 1000}
    batcher.add(Call("quiet", [12], tenant="quiet"))
    assert tokens_by_tenant(batcher.next(least_tokens=300)) == {"quiet": 12}
    assert tokens_by_tenant(batcher.next(least_tokens=300)) == {"busy": 1000}


def test_the_backlog_has_nothing_of_calls_that_nobody_waits_for_any_longer() -> None:
    batcher: Batcher[Call] = Batcher(tokens=100, rows=10, adapters=8)
    abandoned, other = Call("large", [10] * 50), Call("other", [10] * 20, tenant="u")
    for call in (abandoned, other):
        batcher.add(call)
    assert batcher.backlog("t", 1, 3) == 503 + 200
    abandoned.pending = False
    assert batcher.backlog("t", 1, 3) == 3 + 3 and batcher.waiting_tokens == 200
