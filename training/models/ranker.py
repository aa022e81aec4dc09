"""The ranker: a linear model of one candidate's features, and what a DCN-v2 over them and the item's embedding adds.

One body, and a head for each thing that a visit may do with an item: a linear model and a last layer of its own
(Caruana, Multitask Learning, 1997: a shared bottom). What orders the list is one score made of all heads.
Wang et al., DCN V2: Improved Deep & Cross Network, WWW 2021; low-rank crosses and MLP in parallel, as TorchRec has
them. Raw features go in: skewed ones are squashed by a signed log and all are standardised inside the model, so that
what is exported takes exactly what features/recommender/candidates.py gives.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ITEM = "ranked_item"
RETURN = "return"


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
        bias: Tensor,
        crossed: Tensor,
        mean: Tensor,
        std: Tensor,
        embedding: int,
        hidden: tuple[int, ...],
        crosses: int,
        rank: int,
        dropout: float,
        heads: Mapping[str, float],
    ) -> None:
        """linear: float32 [H, F], weights of the squashed and standardised features, bias: [H]. The model starts as
        exactly them, since its last layer starts at zero. crossed: int64 [X], which features the crosses see.
        heads: what each head weighs in the score, by name; "purchase" is the first and weighs 1."""
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
        self.out = nn.Linear(width + hidden[-1], len(heads))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(bias)
        self.heads = dict(heads)

    def forward(self, features: Tensor, embedded: Tensor) -> Tensor:
        known = (squash(features) - self.mean) / self.std
        x = torch.cat((known[:, self.crossed], embedded), dim=1)
        added: Tensor = self.out(torch.cat((self.cross(x), self.deep(x)), dim=1))
        return known @ self.linear.T + added

    def score(self, logits: Tensor) -> Tensor:
        """What orders the list, [...]: the weighed sum of the logits [..., H], where that of the return head stands as
        the log of the chance to be kept. With a weight of 1 that is the log of the chance to be bought and kept."""
        score = logits[..., 0]
        for place, (head, weight) in enumerate(self.heads.items()):
            if place and weight:
                one = logits[..., place]
                # log(1 - chance) written so that no step overflows in ONNX, as its LogSigmoid does.
                kept = -F.relu(one) - torch.log1p(torch.exp(-one.abs()))
                score = score + weight * (kept if head == RETURN else one)
        return score


class Ranker(nn.Module):
    def __init__(self, *, items: int, embedding: int, dense: Dense) -> None:
        super().__init__()
        config = EmbeddingBagConfig(
            name=ITEM, embedding_dim=embedding, num_embeddings=items, feature_names=[ITEM], pooling=PoolingType.SUM
        )
        self.embeddings = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
        self.dense = dense

    def forward(self, features: Tensor, items: KeyedJaggedTensor) -> Tensor:
        """Logits [B, H] of candidates: features float32 [B, F], items one id a row."""
        logits: Tensor = self.dense(features, self.embeddings(items)[ITEM])
        return logits


class PlainRanker(nn.Module):
    """The exported form: features float32 [B, F], items int64 [B] to scores float32 [B]."""

    def __init__(self, table: Tensor, dense: Dense) -> None:
        super().__init__()
        self.table = nn.Embedding(table.shape[0], table.shape[1], _weight=table, _freeze=True)
        self.dense = dense

    def forward(self, features: Tensor, items: Tensor) -> Tensor:
        return self.dense.score(self.dense(features, self.table(items)))
