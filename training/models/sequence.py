"""The network of the sequence model: maps the items a user took, oldest first, to the vector of what they take next.

A causal transformer over item embeddings (Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018),
normalised before each part. It knows the order only by the distance between two entries (a learnt bias for each head,
as in Raffel et al., JMLR 2020, that starts as the slopes of ALiBi, Press et al., ICLR 2022), so every entry of a
history is trained for the question that is put to the last one. Inputs and outputs share one item table. Plain
single-device code over TorchRec's EmbeddingCollection: training/core/sharding.py copies it to several processes,
training/benchmark/sequence.py fits it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

HISTORY, CANDIDATES, TABLE = "history", "candidates", "sequence_item"


class Block(nn.Module):
    """Self-attention and an MLP with GELU, each applied to its normalised input and added to it."""

    def __init__(self, width: int, heads: int, dropout: float, length: int) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        slopes = 2.0 ** (-4 * torch.arange(1, heads + 1) / heads)
        self.distance = nn.Parameter(-slopes[:, None] * torch.arange(length))
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, back: Tensor) -> Tensor:
        """Maps float32 [B, L, D] to the same shape.

        back: int64 [L, L], how far each column lies behind each row; a column below 0 is masked.
        """
        rows, length, width = x.shape
        parts = self.query_key_value(self.before_attention(x)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.dropout if self.training else 0.0
        # Rows are padded on the right: no real entry ever sees the padding, so the causal mask is enough.
        bias = self.distance[:, back.clamp(min=0)].masked_fill(back < 0, -torch.inf).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(rows, length, width)), rate)
        y: Tensor = x + F.dropout(self.mlp(self.before_mlp(x)), rate)
        return y


class Encoder(nn.Module):
    """All layers after the item table."""

    def __init__(self, *, width: int, blocks: int, heads: int, dropout: float, length: int) -> None:
        super().__init__()
        self.length, self.dropout = length, dropout
        self.blocks = nn.ModuleList(Block(width, heads, dropout, length) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Returns the vectors after each entry, float32 [T, D].

        embedded: [T, D], the entries of all rows one after the other; lengths: int64 [B], none above `length`.
        """
        longest = int(lengths.max())
        positions = torch.arange(longest, device=embedded.device)
        is_entry = positions < lengths[:, None]
        x = embedded.new_zeros((len(lengths), longest, embedded.shape[1]))
        x[is_entry] = embedded
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, positions[:, None] - positions)
        y: Tensor = self.norm(x[is_entry])
        return y


class SequenceModel(nn.Module):
    """The item table and the encoder over it."""

    def __init__(self, *, items: int, encoder: Encoder, device: Any = "cpu") -> None:
        super().__init__()
        table = EmbeddingConfig(
            name=TABLE,
            embedding_dim=encoder.norm.normalized_shape[0],
            num_embeddings=items,
            feature_names=[HISTORY, CANDIDATES],
            init_fn=lambda weight: nn.init.normal_(weight, std=0.02),
        )
        self.embeddings = EmbeddingCollection(tables=[table], device=torch.device(device))
        self.encoder = encoder

    def forward(self, features: KeyedJaggedTensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns vectors after each history entry [T, D] and of the candidates [C, D]; their dot product is the logit.

        features: HISTORY (one row for each user, oldest first) and CANDIDATES (in any rows); lengths: int64 [B] of
        HISTORY.
        """
        embedded = self.embeddings(features)
        return self.encoder(embedded[HISTORY].values(), lengths), embedded[CANDIDATES].values()


def sequence_features(history: Tensor, lengths: Tensor, candidates: Tensor) -> KeyedJaggedTensor:
    """Builds the input: history int64 [T] packed, lengths int64 [B], candidates int64 [C] (in the first row)."""
    candidate_lengths = torch.zeros_like(lengths)
    candidate_lengths[0] = len(candidates)
    return KeyedJaggedTensor(
        keys=[HISTORY, CANDIDATES],
        values=torch.cat((history, candidates)),
        lengths=torch.cat((lengths, candidate_lengths)),
    )
