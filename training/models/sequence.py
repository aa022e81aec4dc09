"""The sequence encoder: what a user took, oldest first, to the vector of what they take next.

A causal transformer over item embeddings (Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018),
normalised before each part. What it knows of order is how far back an entry lies from the one that looks at it (a
learnt bias a head, as in Raffel et al., JMLR 2020, that begins as the slopes of ALiBi, Press et al., ICLR 2022), so
every entry of a history learns what the last one is asked. The same table holds the items as input and as output.
Plain single-device code over TorchRec's EmbeddingCollection: sharding is training/core/sharding.py's.
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
    """Self-attention and a GELU layer, each added to its normalised input: float32 [B, L, D] to the same."""

    def __init__(self, width: int, heads: int, dropout: float, length: int) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        slopes = 2.0 ** (-4 * torch.arange(1, heads + 1) / heads)
        self.distance = nn.Parameter(-slopes[:, None] * torch.arange(length))
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, back: Tensor) -> Tensor:
        """back: int64 [L, L], how far each column lies behind each row; below 0 it is not seen."""
        rows, length, width = x.shape
        parts = self.query_key_value(self.before_attention(x)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.dropout if self.training else 0.0
        # Rows are padded on the right: no real entry ever sees the padding, so the causal mask is all it takes.
        bias = self.distance[:, back.clamp(min=0)].masked_fill(back < 0, -torch.inf).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(rows, length, width)), rate)
        y: Tensor = x + F.dropout(self.mlp(self.before_mlp(x)), rate)
        return y


class Encoder(nn.Module):
    """Everything behind the item table: embedded histories [T, D], packed, to the vectors after each entry [T, D]."""

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
        """embedded: [T, D], the entries of all rows one after the other; lengths: int64 [B], none above `length`."""
        longest = int(lengths.max())
        places = torch.arange(longest, device=embedded.device)
        real = places < lengths[:, None]
        x = embedded.new_zeros((len(lengths), longest, embedded.shape[1]))
        x[real] = embedded
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, places[:, None] - places)
        y: Tensor = self.norm(x[real])
        return y


class SequenceModel(nn.Module):
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
        """Vectors after each history entry [T, D] and the candidates' vectors [C, D]; their dot product is the logit.

        features: HISTORY (one row a user, oldest first) and CANDIDATES (all in the first rows' place, any lengths);
        lengths: int64 [B] of HISTORY.
        """
        found = self.embeddings(features)
        return self.encoder(found[HISTORY].values(), lengths), found[CANDIDATES].values()


def features_of(history: Tensor, lengths: Tensor, candidates: Tensor) -> KeyedJaggedTensor:
    """The model's input: history int64 [T] packed, lengths int64 [B], candidates int64 [C] (in the first row)."""
    places = torch.zeros_like(lengths)
    places[0] = len(candidates)
    return KeyedJaggedTensor(
        keys=[HISTORY, CANDIDATES], values=torch.cat((history, candidates)), lengths=torch.cat((lengths, places))
    )
