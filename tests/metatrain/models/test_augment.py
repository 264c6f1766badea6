"""Augmented views of one row: what each method changes, how much, and where."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pytest
from pydantic import ValidationError

from metatrain.models.inputs.augment import METHODS, Augmentation, AugmentationKind, View


@dataclass
class Encoder:
    width: int = 6
    mask_token: int = 99


IDS = [2, *range(10, 20), 3]


def views(kind: AugmentationKind, strength: float, ids: list[int] = IDS, count: int = 400) -> list[View]:
    return [METHODS[kind].view(ids, strength, Encoder(), (7, number)) for number in range(count)]


def test_token_dropout_keeps_the_order_and_drops_its_share() -> None:
    kept = [list(view.ids) for view in views("token_dropout", 0.3)]
    assert all(ids[0] == 2 and ids[-1] == 3 and ids[1:-1] == sorted(ids[1:-1]) for ids in kept)
    shares = [sum(token in ids for ids in kept) / len(kept) for token in range(10, 20)]
    assert shares == pytest.approx([0.7] * 10, abs=0.08)


def test_token_dropout_keeps_at_least_one_token_chosen_at_random() -> None:
    kept = [list(view.ids) for view in views("token_dropout", 0.9999)]
    assert all(len(ids) == 3 for ids in kept)
    assert {ids[1] for ids in kept} == set(range(10, 20))


@pytest.mark.parametrize(
    ("strength", "tokens", "masked"), [(0.3, 10, 3), (0.25, 10, 2), (0.01, 10, 1), (0.99, 10, 9), (0.5, 2, 1), (0.9, 3, 2)]
)
def test_span_mask_masks_one_span_of_its_share_anywhere(strength: float, tokens: int, masked: int) -> None:
    ids = [2, *range(10, 10 + tokens), 3]
    starts = set()
    for view in views("span_mask", strength, ids):
        hidden = [token == 99 for token in view.ids]
        assert [sum(run) for value, run in groupby(hidden) if value] == [masked]
        assert [token for token, hide in zip(view.ids, hidden, strict=True) if not hide] == [
            token for token, hide in zip(ids, hidden, strict=True) if not hide
        ]
        starts.add(hidden.index(True))
    assert starts == set(range(1, tokens - masked + 2))


@pytest.mark.parametrize("kind", ["token_dropout", "span_mask"])
def test_rows_with_fewer_than_two_tokens_between_the_first_and_the_last_are_unchanged(kind: AugmentationKind) -> None:
    for ids in ([2, 3], [2, 10, 3]):
        assert all(list(view.ids) == ids and view.noise is None for view in views(kind, 0.9, ids, 20))
    assert any(list(view.ids) != [2, 10, 11, 3] for view in views(kind, 0.9, [2, 10, 11, 3], 20))


def test_embedding_noise_is_uniform_with_a_bound_by_length_and_width() -> None:
    """Compare with NEFTune (Jain et al. 2023, arXiv:2310.05914), algorithm 1: uniform in ±α / √(L D)."""
    found = views("embedding_noise", 5.0)
    assert all(list(view.ids) == IDS for view in found)
    noise = np.stack([view.noise for view in found if view.noise is not None])
    bound = 5.0 / np.sqrt(len(IDS) * 6)
    assert noise.shape == (400, len(IDS), 6) and noise.dtype == np.float32
    assert 0.99 * bound < noise.max() <= bound and -bound <= noise.min() < -0.99 * bound
    assert noise.std() == pytest.approx(bound / np.sqrt(3), rel=0.01) and abs(noise.mean()) < 0.01 * bound


def test_a_share_must_be_below_one_and_an_amount_of_noise_need_not() -> None:
    assert Augmentation(kind="token_dropout", strength=0.999).strength == 0.999
    assert Augmentation(kind="embedding_noise", strength=5.0).strength == 5.0
    for strength in (1.0, 1.5):
        with pytest.raises(ValidationError, match="strength: expected a share of the tokens below 1 for span_mask"):
            Augmentation(kind="span_mask", strength=strength)


@pytest.mark.parametrize("kind", ["token_dropout", "span_mask", "embedding_noise"])
def test_a_view_depends_only_on_its_seed(kind: AugmentationKind) -> None:
    first, again = views(kind, 0.4, count=5), views(kind, 0.4, count=5)
    for left, right in zip(first, again, strict=True):
        assert list(left.ids) == list(right.ids) and np.array_equal(left.noise, right.noise)  # type: ignore[arg-type]
    assert len({(tuple(view.ids), None if view.noise is None else view.noise.tobytes()) for view in first}) > 1
