"""Tests that value and gradients of the cross entropy are PyTorch's, in pieces and in half precision."""

import pytest
import torch
import torch.nn.functional as F

from training.benchmark import softmax


@pytest.mark.parametrize(("precision", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_value_and_gradients_are_those_of_the_plain_loss(
    precision: torch.dtype, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "_precision", lambda vectors: precision)
    generator = torch.Generator().manual_seed(0)
    hidden, vectors = (torch.randn(rows, 8, generator=generator) for rows in (softmax.PIECE_ROWS + 9, 50))
    targets = torch.randint(50, (len(hidden),), generator=generator)
    results = []
    shift = torch.randn(50, generator=generator)
    for loss_of in (softmax.cross_entropy, lambda h, v, t, s: F.cross_entropy(h @ v.T + s, t)):
        parts = [part.clone().requires_grad_() for part in (hidden, vectors)]
        loss = 3 * loss_of(*parts, targets, shift)
        loss.backward()
        results.append((loss.detach(), *(part.grad for part in parts)))
    for ours, plain in zip(*results, strict=True):
        assert (ours - plain).norm() <= within * plain.norm()
