"""Cross entropy over a large set of items without ever holding all its logits.

A batch's rows are taken in small pieces whose logits stay in the processor's cache, and each piece leaves its part of
the gradient at once, so nothing is kept or computed twice for the backward pass (the idea of Cut Cross-Entropy,
Wijmans et al., ICLR 2025).
"""

from typing import Any

import torch
from torch import Tensor

PIECE = 192
"""Rows whose logits exist at one time."""
WORTH_HALF = 1_000
"""Sets below this gain nothing from bf16."""


def cross_entropy(hidden: Tensor, vectors: Tensor, targets: Tensor, shift: Tensor) -> Tensor:
    """Mean cross entropy of targets (int64 [N], columns) by the logits hidden [N, D] @ vectors [V, D].T + shift [V].

    No gradient goes to shift. The products run in bf16 where the processor multiplies it faster (CUDA, AMX).
    """
    loss: Tensor = _CrossEntropy.apply(hidden, vectors, targets, shift, _precision(vectors))
    return loss


def _precision(vectors: Tensor) -> torch.dtype:
    fast = vectors.is_cuda or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and len(vectors) >= WORTH_HALF else torch.float32


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, vectors: Tensor, targets: Tensor, shift: Tensor, precision: torch.dtype
    ) -> Tensor:
        rows, columns, shift = hidden.to(precision), vectors.to(precision), shift.to(precision)
        to_hidden, to_vectors = torch.empty_like(rows), torch.zeros_like(vectors)
        loss = hidden.new_zeros((), dtype=torch.float32)
        pieces = zip(rows.split(PIECE), targets.split(PIECE), to_hidden.split(PIECE), strict=True)
        for piece, wanted, gradient in pieces:
            shares = torch.softmax(torch.addmm(shift, piece, columns.T), dim=1)
            loss -= shares.gather(1, wanted[:, None]).float().clamp(min=1e-30).log().sum()
            torch.mm(shares, columns, out=gradient)
            to_vectors += shares.T @ piece
        # The target's own part, exactly: 1 - share would lose most of its digits in bf16.
        gradient_of_hidden = to_hidden.to(hidden.dtype) - vectors[targets]
        to_vectors.index_add_(0, targets, hidden.to(vectors.dtype), alpha=-1)
        ctx.save_for_backward(gradient_of_hidden, to_vectors)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        to_hidden, to_vectors = ctx.saved_tensors
        scale = upstream[0] / len(to_hidden)
        return to_hidden * scale, to_vectors * scale, None, None, None
