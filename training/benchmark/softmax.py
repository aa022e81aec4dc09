"""Computes the cross entropy over a large set of items without holding all its logits at once.

The rows of a batch are processed in small pieces whose logits fit into the processor's cache. Each piece adds its part
of the gradient at once, so nothing is kept or computed twice for the backward pass (the idea of Cut Cross-Entropy,
Wijmans et al., ICLR 2025).
"""

from typing import Any

import torch
from torch import Tensor

PIECE_ROWS = 192
"""Rows whose logits exist at the same time."""
MIN_BF16_ITEMS = 1_000
"""Smaller sets of items gain nothing from bf16."""


def cross_entropy(hidden: Tensor, vectors: Tensor, targets: Tensor, shift: Tensor) -> Tensor:
    """Returns the mean cross entropy of targets (int64 [N]) by the logits hidden [N, D] @ vectors [V, D].T + shift [V].

    No gradient flows to shift. The products run in bf16 where the processor multiplies it faster (CUDA, AMX).
    """
    loss: Tensor = _CrossEntropy.apply(hidden, vectors, targets, shift, _precision(vectors))
    return loss


def _precision(vectors: Tensor) -> torch.dtype:
    """Returns the dtype of the products."""
    fast = vectors.is_cuda or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and len(vectors) >= MIN_BF16_ITEMS else torch.float32


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, vectors: Tensor, targets: Tensor, shift: Tensor, precision: torch.dtype
    ) -> Tensor:
        rows, columns, shift = hidden.to(precision), vectors.to(precision), shift.to(precision)
        hidden_gradient, vector_gradient = torch.empty_like(rows), torch.zeros_like(vectors)
        loss = hidden.new_zeros((), dtype=torch.float32)
        pieces = zip(rows.split(PIECE_ROWS), targets.split(PIECE_ROWS), hidden_gradient.split(PIECE_ROWS), strict=True)
        for piece, piece_targets, piece_gradient in pieces:
            shares = torch.softmax(torch.addmm(shift, piece, columns.T), dim=1)
            loss -= shares.gather(1, piece_targets[:, None]).float().clamp(min=1e-30).log().sum()
            torch.mm(shares, columns, out=piece_gradient)
            vector_gradient += shares.T @ piece
        # The part of the target itself, exactly: 1 - share would lose most of its digits in bf16.
        exact_hidden_gradient = hidden_gradient.to(hidden.dtype) - vectors[targets]
        vector_gradient.index_add_(0, targets, hidden.to(vectors.dtype), alpha=-1)
        ctx.save_for_backward(exact_hidden_gradient, vector_gradient)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, vector_gradient = ctx.saved_tensors
        scale = upstream[0] / len(hidden_gradient)
        return hidden_gradient * scale, vector_gradient * scale, None, None, None
