"""Optimising neurons: leads and gradients by hand."""

import torch
from torch.nn.functional import cross_entropy

from megedit.lm.batches import IGNORED
from megedit.optimise import answer_leads, loss_gradient


def test_leads_by_hand() -> None:
    logits = torch.tensor(
        [
            [[5.0, 1.0, 2.0], [0.0, 4.0, 1.0]],  # leads 3 and 3
            [[5.0, 1.0, 2.0], [0.0, 4.0, 1.0]],  # the second token is 3 behind
            [[2.0, 2.0, 0.0], [9.0, 0.0, 0.0]],  # a tie is no lead; the second position does not count
        ]
    )
    labels = torch.tensor([[0, 1], [0, 2], [1, IGNORED]])
    assert answer_leads(logits, labels).tolist() == [3.0, -3.0, 0.0]


def test_the_loss_gradient_is_that_of_autograd() -> None:
    logits = torch.randn(4, 3, 20, requires_grad=True)
    labels = torch.tensor([[3, 1, 2], [5, IGNORED, IGNORED], [7, 7, IGNORED], [0, 19, 4]])
    rows = [cross_entropy(row, label, ignore_index=IGNORED) for row, label in zip(logits, labels, strict=True)]
    (expected,) = torch.autograd.grad(torch.stack(rows).sum(), logits)
    torch.testing.assert_close(loss_gradient(logits.detach(), labels), expected)
    half = loss_gradient(logits.detach().bfloat16(), labels)
    assert half.dtype == torch.bfloat16
