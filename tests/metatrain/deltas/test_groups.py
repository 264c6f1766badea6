"""Products of groups of tokens with their own matrices, and their derivatives, against plain loops."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from metatrain.deltas.groups import Groups, PaddedGroups, RowGroups, TokenGroups, token_groups
from metatrain.errors import UnsupportedDelta

CPU = torch.device("cpu")
EQUAL, UNEQUAL = (3, 3, 3, 3), (1, 5, 2, 4)
DIVISIONS: dict[str, tuple[Groups, tuple[int, ...]]] = {
    "rows": (RowGroups(4), EQUAL),
    "equal tokens": (token_groups(EQUAL, CPU), EQUAL),
    "tokens": (TokenGroups(UNEQUAL), UNEQUAL),
    "padded": (PaddedGroups(UNEQUAL, CPU), UNEQUAL),
}


def plain(lengths: Sequence[int], of_group: Callable[[int, slice], Tensor]) -> Tensor:
    ends = [sum(lengths[: g + 1]) for g in range(len(lengths))]
    return torch.cat([of_group(g, slice(end - lengths[g], end)) for g, end in enumerate(ends)])


@pytest.mark.parametrize("name", DIVISIONS)
def test_each_group_uses_its_own_matrix_and_vector(name: str) -> None:
    groups, lengths = DIVISIONS[name]
    draw = torch.Generator().manual_seed(0)
    x, w, y, bias, v = (
        torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
        for shape in ((12, 5), (4, 5, 3), (12, 3), (4, 3), (4, 5))
    )
    torch.testing.assert_close(groups.product(x, w), plain(lengths, lambda g, part: x[part] @ w[g]))
    torch.testing.assert_close(groups.add_product(y, x, w), plain(lengths, lambda g, part: y[part] + x[part] @ w[g]))
    torch.testing.assert_close(groups.affine(x, w, bias), plain(lengths, lambda g, part: x[part] @ w[g] + bias[g]))
    torch.testing.assert_close(groups.scaled(x, v), plain(lengths, lambda g, part: x[part] * v[g]))

    def all_of_them(x: Tensor, w: Tensor, y: Tensor, bias: Tensor, v: Tensor) -> Tensor:
        return groups.add_product(y, torch.tanh(groups.scaled(x, v)), w) * groups.affine(x, w, bias) + groups.product(x, w)

    assert torch.autograd.gradcheck(all_of_them, (x, w, y, bias, v))
    assert torch.autograd.gradgradcheck(all_of_them, (x, w, y, bias, v))


def test_the_form_follows_from_the_lengths() -> None:
    many = [n % 3 + 1 for n in range(20)]
    assert isinstance(token_groups([2, 3], CPU), PaddedGroups)
    assert isinstance(token_groups(many, CPU), PaddedGroups)
    assert isinstance(token_groups([*many, 1000], CPU), TokenGroups)  # padding would make it twenty times as large
    assert isinstance(token_groups([7], CPU), RowGroups)


@pytest.mark.parametrize(
    ("groups", "shape"), [(token_groups([2, 2], CPU), (1, 3, 5)), (TokenGroups((1, 2)), (1, 4, 5)), (RowGroups(2), (3, 4, 5))]
)
def test_another_number_of_tokens_is_refused(groups: Groups, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedDelta, match="a layer was called with"):
        groups.check(torch.zeros(shape))
    with pytest.raises(UnsupportedDelta, match="a layer was called with 7 tokens, expected the 6 of the batch"):
        PaddedGroups([1, 5], CPU).check(torch.zeros(1, 7, 2))
