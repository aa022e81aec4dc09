"""The ranker: a linear model of one candidate's features, and what a DCN-v2 over them and the item's embedding adds.

Wang et al., DCN V2: Improved Deep & Cross Network, WWW 2021; low-rank crosses and MLP in parallel, as TorchRec has
them. Raw features go in: skewed ones are squashed by a signed log and all are standardised inside the model, so that
what is exported takes exactly what features/candidates.py gives.
"""

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ITEM = "ranked_item"


def squash(features: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): keeps small numbers as they are and tames counts and money."""
    return torch.sign(features) * torch.log1p(features.abs())


class Dense(nn.Module):
    """Everything after the embedding: float32 features [B, F] and embedding [B, E] to logits [B]."""

    mean: Tensor
    std: Tensor
    crossed: Tensor

    def __init__(
        self,
        *,
        linear: Tensor,
        crossed: Tensor,
        mean: Tensor,
        std: Tensor,
        embedding: int,
        hidden: tuple[int, ...],
        crosses: int,
        rank: int,
        dropout: float,
    ) -> None:
        """linear: float32 [F], weights of the squashed and standardised features. The model starts as exactly them,
        since its last layer starts at zero. crossed: int64 [X], which features the crosses see."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("crossed", crossed)
        width = len(crossed) + embedding
        self.cross = LowRankCrossNet(width, num_layers=crosses, low_rank=rank)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((width, *hidden), hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.deep = nn.Sequential(*layers)
        self.linear = nn.Parameter(linear)
        self.out = nn.Linear(width + hidden[-1], 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, embedded: Tensor) -> Tensor:
        known = (squash(features) - self.mean) / self.std
        x = torch.cat((known[:, self.crossed], embedded), dim=1)
        added: Tensor = self.out(torch.cat((self.cross(x), self.deep(x)), dim=1)).squeeze(1)
        return known @ self.linear + added


class Ranker(nn.Module):
    def __init__(self, *, items: int, embedding: int, dense: Dense) -> None:
        super().__init__()
        config = EmbeddingBagConfig(
            name=ITEM, embedding_dim=embedding, num_embeddings=items, feature_names=[ITEM], pooling=PoolingType.SUM
        )
        self.embeddings = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
        self.dense = dense

    def forward(self, features: Tensor, items: KeyedJaggedTensor) -> Tensor:
        """Logits [B] of candidates: features float32 [B, F], items one id a row."""
        logits: Tensor = self.dense(features, self.embeddings(items)[ITEM])
        return logits


class PlainRanker(nn.Module):
    """The exported form: features float32 [B, F], items int64 [B] to scores float32 [B]."""

    def __init__(self, table: Tensor, dense: Dense) -> None:
        super().__init__()
        self.table = nn.Embedding(table.shape[0], table.shape[1], _weight=table, _freeze=True)
        self.dense = dense

    def forward(self, features: Tensor, items: Tensor) -> Tensor:
        logits: Tensor = self.dense(features, self.table(items))
        return logits
