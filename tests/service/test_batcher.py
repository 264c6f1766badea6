"""Which rows go into a batch."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from service.batcher import Batcher


@dataclass(eq=False)
class Call:
    key: str
    lengths: list[int]
    there: bool = True

    def waits(self) -> bool:
        return self.there


def rows(batch: list[tuple[Call, range]]) -> list[tuple[str, list[int]]]:
    return [(call.key, list(which)) for call, which in batch]


def test_every_call_gets_its_share_before_any_gets_more() -> None:
    batcher: Batcher[Call] = Batcher(tokens=1000, rows=6, adapters=8)
    for call in (Call("large", [1] * 20), Call("small", [1] * 2), Call("middle", [1] * 5)):
        batcher.add(call)
    assert rows(batcher.next()) == [("large", [0, 1]), ("small", [0, 1]), ("middle", [0, 1])]
    assert rows(batcher.next()) == [("large", [2, 3, 4]), ("middle", [2, 3, 4])]
    assert rows(batcher.next()) == [("large", [5, 6, 7, 8, 9, 10])]


def test_budgets_of_tokens_and_adapters_but_always_one_row() -> None:
    batcher: Batcher[Call] = Batcher(tokens=10, rows=64, adapters=2)
    for call in (Call("a", [50, 4]), Call("b", [4]), Call("c", [1])):
        batcher.add(call)
    assert rows(batcher.next()) == [("a", [0])]  # over the budget alone, and never to be had otherwise
    assert rows(batcher.next()) == [("a", [1]), ("b", [0])]  # two adapters are all that the bank holds
    assert rows(batcher.next()) == [("c", [0])]


def test_who_goes_away_frees_the_place() -> None:
    batcher: Batcher[Call] = Batcher(tokens=100, rows=4, adapters=4)
    gone, stays = Call("gone", [1] * 50), Call("stays", [1] * 3)
    batcher.add(gone)
    batcher.add(stays)
    assert rows(batcher.next()) == [("gone", [0, 1]), ("stays", [0, 1])]
    gone.there = False
    assert rows(batcher.next()) == [("stays", [2])]
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
    waiting = [Call(key, lengths) for key, lengths in calls]
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
