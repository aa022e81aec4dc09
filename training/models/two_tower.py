"""The network of the two-tower: a user is represented by the items they lately took, an item by its id and content.

Both towers end in unit vectors of D numbers; their dot product, over a learned temperature, is the logit of "this
item is taken in the next visit" (Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016; Yi et
al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019). Plain single-device
code: training/core/sharding.py shards it, training/recommender/two_tower.py fits it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ITEM, CONTENT = "item", "content"


class Tower(nn.Module):
    """Maps x to x + MLP(x), scaled to unit length: float32 [B, D] to float32 [B, D]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x + self.mlp(x), dim=-1)


class TwoTower(nn.Module):
    """Both towers over the shared tables of items and content."""

    def __init__(self, *, items: int, buckets: int, width: int, dropout: float) -> None:
        super().__init__()

        def table(name: str, rows: int) -> EmbeddingBagConfig:
            return EmbeddingBagConfig(
                name=name, embedding_dim=width, num_embeddings=rows, feature_names=[name], pooling=PoolingType.SUM
            )

        self.bags = EmbeddingBagCollection(
            tables=[table(ITEM, items), table(CONTENT, buckets)], is_weighted=True, device=torch.device("meta")
        )
        self.user_tower = Tower(width, dropout)
        self.item_tower = Tower(width, dropout)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, bags: KeyedJaggedTensor, users: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns user vectors [B, D], item vectors [C, D] and logits [B, C].

        bags: ITEM and CONTENT (hashed tokens, features/recommender/content_tokens.py) with weights. The first `users`
        rows are histories, whose items' weights sum to 1; each row after them is one item of weight 1.
        An item's tokens share its weight.
        """
        embedded = self.bags(bags)
        pooled = embedded[ITEM] + embedded[CONTENT]
        user_vectors, item_vectors = self.user_tower(pooled[:users]), self.item_tower(pooled[users:])
        return user_vectors, item_vectors, (user_vectors @ item_vectors.T) * self.log_scale.exp().clamp(max=50)


class PooledTower(nn.Module):
    """The exported half: the user tower over padded histories."""

    def __init__(self, table: Tensor, tower: Tower) -> None:
        """table: float32 [items, D], the sum of an item's embedding and that of its content."""
        super().__init__()
        self.table = nn.Embedding(table.shape[0], table.shape[1], _weight=table, _freeze=True)
        self.tower = tower

    def forward(self, items: Tensor, weights: Tensor) -> Tensor:
        """Returns user vectors float32 [B, D].

        items: int64 [B, L], any valid index where the weight is 0; weights: float32 [B, L], summing to 1 in each row.
        """
        pooled = (self.table(items) * weights.unsqueeze(-1)).sum(dim=1)
        vectors: Tensor = self.tower(pooled)
        return vectors
