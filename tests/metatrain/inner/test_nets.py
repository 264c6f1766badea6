"""Prototypical Networks on a small net, against a loop over classes and rows."""

import torch
from torch import Tensor, nn

from metatrain.inner.nets import EmbeddingTasks, Examples, parameters
from metatrain.inner.problem import Outer


def test_the_loss_is_that_of_the_squared_distances_to_the_class_means() -> None:
    """Compare with equations 1 and 2 of Snell et al. 2017 (arXiv:1703.05175).

    The classes have different numbers of shots.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    x, q = torch.randn(2, 6, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    y = torch.tensor([[0, 1, 1, 2, 2, 2], [2, 0, 0, 0, 1, 2]])
    z = torch.tensor([[2, 1, 0, 1], [0, 0, 2, 1]])
    tasks = EmbeddingTasks(net, Examples(x, y), Examples(q, z), steps=1)
    outer = Outer(parameters(net), {})
    phi = tasks.start(outer).phi
    queried, accuracy = tasks.query_loss(phi, outer, 0)
    support = tasks.support_loss(phi, outer, 0, tasks.start(outer))

    def logits(t: int, rows: Tensor) -> Tensor:
        means = [torch.stack([net(x[t, i]) for i in range(6) if y[t, i] == c]).mean(0) for c in range(3)]
        return torch.stack([torch.stack([-(net(row) - mean).square().sum() for mean in means]) for row in rows])

    for t in range(2):
        for rows, labels, loss in ((q[t], z[t], queried[t]), (x[t], y[t], support[t])):
            rows_losses = [-row.log_softmax(0)[label] for row, label in zip(logits(t, rows), labels.tolist(), strict=True)]
            torch.testing.assert_close(loss, torch.stack(rows_losses).mean())
        assert float(accuracy[t]) == float((logits(t, q[t]).argmax(1) == z[t]).double().mean())
