"""The network of the ranker: a linear model of a candidate's features, plus a DCN-v2 over them and the item embedding.

The layers are shared, and each head has a linear model and a last layer of its own (Caruana, Multitask Learning, 1997:
a shared bottom). One score of all heads orders the list. Wang et al., DCN V2: Improved Deep & Cross Network, WWW 2021;
low-rank crosses and MLP in parallel, as in TorchRec. The model takes raw features and squashes and standardises them
itself, so the exported model takes exactly what features/recommender/candidates.py gives.
training/recommender/ranker.py fits it.
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
    """Returns sign(x) log(1 + |x|), which hardly changes small numbers and compresses counts and amounts of money."""
    return torch.sign(features) * torch.log1p(features.abs())


class Dense(nn.Module):
    """All layers after the embedding."""

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
        """Starts as exactly the linear model, since the last layer starts at zero.

        linear: float32 [H, F], weights of the squashed and standardised features; bias: [H]; mean, std: float32 [F] of
        the squashed features; crossed: int64 [X], which features the crosses see; embedding: its width E; heads: weight
        of each head in the score, by name, of which "purchase" is the first and weighs 1.
        """
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
        """Maps float32 features [B, F] and embeddings [B, E] to logits [B, H]."""
        standardised = (squash(features) - self.mean) / self.std
        x = torch.cat((standardised[:, self.crossed], embedded), dim=1)
        added: Tensor = self.out(torch.cat((self.cross(x), self.deep(x)), dim=1))
        return standardised @ self.linear.T + added

    def score(self, logits: Tensor) -> Tensor:
        """Returns what orders the list, [...]: the weighted sum of the logits [..., H].

        The return head counts with the log probability that the item is kept: with a weight of 1 the score is then
        that of being bought and kept.
        """
        score = logits[..., 0]
        for number, (head, weight) in enumerate(self.heads.items()):
            if number and weight:
                logit = logits[..., number]
                # log(1 - probability) written so that no step overflows in ONNX, as its LogSigmoid does.
                log_kept = -F.relu(logit) - torch.log1p(torch.exp(-logit.abs()))
                score = score + weight * (log_kept if head == RETURN else logit)
        return score


class Ranker(nn.Module):
    """The trained form, whose item table TorchRec shards."""

    def __init__(self, *, items: int, embedding: int, dense: Dense) -> None:
        super().__init__()
        config = EmbeddingBagConfig(
            name=ITEM, embedding_dim=embedding, num_embeddings=items, feature_names=[ITEM], pooling=PoolingType.SUM
        )
        self.embeddings = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
        self.dense = dense

    def forward(self, features: Tensor, items: KeyedJaggedTensor) -> Tensor:
        """Returns logits [B, H] of candidates: features float32 [B, F], items with one id in each row."""
        logits: Tensor = self.dense(features, self.embeddings(items)[ITEM])
        return logits


class PlainRanker(nn.Module):
    """The exported form, with the item table as a plain embedding."""

    def __init__(self, table: Tensor, dense: Dense) -> None:
        super().__init__()
        self.table = nn.Embedding(table.shape[0], table.shape[1], _weight=table, _freeze=True)
        self.dense = dense

    def forward(self, features: Tensor, items: Tensor) -> Tensor:
        """Maps features float32 [B, F] and items int64 [B] to scores float32 [B]."""
        return self.dense.score(self.dense(features, self.table(items)))
