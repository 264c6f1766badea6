"""The batcher: order of calls, limits of a batch, and cancelled or removed calls."""

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
    st.lists(st.tuples(st.sampled_from("abcde"), st.lists(st.integers(1, 30), min_size=1, max_size=12)), min_size=1, max_size=10),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 5),
)
def test_every_row_is_in_exactly_one_batch_in_order_and_within_the_limits(
    calls: list[tuple[str, list[int]]], tokens: int, most: int, adapters: int
) -> None:
    batcher: Batcher[Call] = Batcher(tokens, most, adapters)
    waiting = [Call(key, lengths, float(n)) for n, (key, lengths) in enumerate(calls)]
    for call in waiting:
        batcher.add(call)
    batched: dict[int, list[int]] = {id(call): [] for call in waiting}
    while len(batcher):
        batch = batcher.next()
        lengths = [call.lengths[row] for call, rows in batch for row in rows]
        assert 1 <= len(lengths) <= most and (sum(lengths) <= tokens or len(lengths) == 1)
        assert len({call.key for call, _ in batch}) <= adapters
        for call, rows in batch:
            batched[id(call)] += rows
    assert all(batched[id(call)] == list(range(len(call.lengths))) for call in waiting)
