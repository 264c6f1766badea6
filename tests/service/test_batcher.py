"""Which rows go into a batch."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from service.predicting.batcher import Batcher


@dataclass(eq=False)
class Call:
    key: str
    lengths: list[int]
    began: float = 0.0
    there: bool = True

    def waits(self) -> bool:
        return self.there


def rows(batch: list[tuple[Call, range]]) -> list[tuple[str, list[int]]]:
    return [(call.key, list(which)) for call, which in batch]


def test_equal_calls_in_turn_small_ones_before_large_ones_and_none_for_ever() -> None:
    batcher: Batcher[Call] = Batcher(tokens=1000, rows=6, adapters=8)
    for call in (Call("large", [1] * 20, 0.0), Call("first", [1] * 3, 0.05), Call("second", [1] * 3, 0.06), Call("late", [1], 0.2)):
        batcher.add(call)
    assert batcher.full()
    assert rows(batcher.next()) == [("first", [0, 1, 2]), ("second", [0, 1, 2])]
    assert rows(batcher.next()) == [("large", [0, 1, 2, 3, 4, 5])]  # 20 rows of 5 ms: due at 0.1, before what came at 0.2
    batcher.add(Call("later", [1], 0.3))
    assert rows(batcher.next()) == [("large", [6, 7, 8, 9, 10, 11])]


def test_budgets_of_tokens_and_adapters_but_always_one_row() -> None:
    batcher: Batcher[Call] = Batcher(tokens=10, rows=64, adapters=2)
    for call in (Call("a", [50, 4], 1.0), Call("b", [4], 2.0), Call("c", [1], 3.0)):
        batcher.add(call)
    assert rows(batcher.next()) == [("a", [0])]  # over the budget alone, and never to be had otherwise
    assert rows(batcher.next()) == [("a", [1]), ("b", [0])]  # two adapters are all that the bank holds
    assert rows(batcher.next()) == [("c", [0])]


def test_who_goes_away_frees_the_place() -> None:
    batcher: Batcher[Call] = Batcher(tokens=100, rows=4, adapters=4)
    gone, stays, removed = Call("gone", [1] * 50, 1.0), Call("stays", [1] * 3, 2.0), Call("removed", [1] * 3, 3.0)
    for call in (gone, stays, removed):
        batcher.add(call)
    assert rows(batcher.next()) == [("gone", [0, 1, 2, 3])]
    gone.there = False
    batcher.remove(removed)
    assert rows(batcher.next()) == [("stays", [0, 1, 2])]
    assert len(batcher) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.lists(st.integers(1, 30), min_size=1, max_size=12)), min_size=1, max_size=10),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 5),
)
def test_every_row_is_dealt_once_in_order_within_the_budgets(
    calls: list[tuple[str, list[int]]], tokens: int, most: int, adapters: int
) -> None:
    batcher: Batcher[Call] = Batcher(tokens, most, adapters)
    waiting = [Call(key, lengths, float(n)) for n, (key, lengths) in enumerate(calls)]
    for call in waiting:
        batcher.add(call)
    dealt: dict[int, list[int]] = {id(call): [] for call in waiting}
    while len(batcher):
        batch = batcher.next()
        lengths = [call.lengths[row] for call, which in batch for row in which]
        assert 1 <= len(lengths) <= most and (sum(lengths) <= tokens or len(lengths) == 1)
        assert len({call.key for call, _ in batch}) <= adapters
        for call, which in batch:
            dealt[id(call)] += which
    assert all(dealt[id(call)] == list(range(len(call.lengths))) for call in waiting)
