"""`RowTargets`, the targets with one value per row. Readouts of plugin packages can build on them."""

import pytest
import torch

from metatrain.readouts.readout import RowTargets


def targets() -> RowTargets:
    return RowTargets.of([[1.0, 2.0, 3.0], [4.0]], torch.device("cpu"))


def test_tasks_of_different_sizes_are_padded() -> None:
    made = targets()
    assert made.values.tolist() == [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]] and made.values.dtype == torch.float32
    assert made.real().tolist() == [[True, True, True], [True, False, False]]
    assert (made.shape, made.sizes, made.most_shots) == ((2, 3), [(3, 1), (1, 1)], [3, 1])


@pytest.mark.parametrize(("rows", "partners"), [([[1.0, 2.0], [3.0, 4.0, 5.0]], True), ([[1.0, 2.0], [3.0]], False)])
def test_a_row_has_a_partner_if_its_task_has_another_row(rows: list[list[float]], partners: bool) -> None:
    assert RowTargets.of(rows, torch.device("cpu")).has_partners is partners


def test_rows_and_tasks_are_chosen_with_their_masks() -> None:
    columns = targets().columns(torch.tensor([2, 0]))
    assert columns.values.tolist() == [[3.0, 1.0], [0.0, 4.0]] and columns.mask.tolist() == [[True, True], [False, True]]
    only = targets().only([1])
    assert only.values.tolist() == [[4.0, 0.0, 0.0]] and only.mask.tolist() == [[True, False, False]]


def test_views_repeat_all_rows_in_order() -> None:
    views = targets().repeat(2)
    assert views.values[0].tolist() == [1.0, 2.0, 3.0] * 2 and views.mask[1].tolist() == [True, False, False] * 2
    vectors = RowTargets.of([[[1.0, 2.0], [3.0, 4.0]]], torch.device("cpu")).repeat(2)
    assert vectors.values.tolist() == [[[1.0, 2.0], [3.0, 4.0]] * 2] and vectors.mask.tolist() == [[True] * 4]


def test_parts_are_seeded_and_have_every_row_once() -> None:
    made = RowTargets.of([[float(i) for i in range(10)]], torch.device("cpu"))
    assert made.parts(1, seed=0)[0].tolist() == list(range(10))
    parts = made.parts(3, seed=0)
    assert sorted(len(part) for part in parts) == [3, 3, 4] and sorted(torch.cat(parts).tolist()) == list(range(10))
    assert torch.cat(parts).tolist() == torch.cat(made.parts(3, seed=0)).tolist() != torch.cat(made.parts(3, seed=1)).tolist()
    assert torch.cat(parts).tolist() != list(range(10))
