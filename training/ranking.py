"""Fitting the ranker: drawn candidates of past orders in, scores that order them out."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from features.candidates import CANDIDATE_FEATURES, USER_FEATURES, draw
from features.catalogue import ITEM_WINDOWS, Catalogue
from training.configs import RankerConfig
from training.data import Drawn, ItemDays, Query
from training.fitting import Curve, Watch, fit
from training.models.ranker import ITEM, Dense, PlainRanker, Ranker, squash
from training.retrieval import Retrieval
from training.shard import dense_parameters, loss_scale, shard, share, table, total


def draw_all(
    queries: list[Query], catalogue: Catalogue, days: ItemDays, fitted: Retrieval, *, per_source: int, label: str
) -> list[Drawn]:
    """Candidates of each query, drawn as in service (vector search exact)."""
    days.prepare(np.array([query.who.at for query in queries], dtype=np.int64))
    vectors = fitted.user_vectors([query.who for query in queries])
    drawn = []
    for query, vector in tqdm(zip(queries, vectors, strict=True), total=len(queries), desc=label, leave=False):
        scores = catalogue.vectors @ vector
        top = min(per_source, len(scores))
        hits = np.argpartition(-scores, top - 1)[:top] if vector.any() else np.empty(0, dtype=np.int64)
        hits = hits[np.argsort(-scores[hits], kind="stable")]
        candidates = draw(
            query.who, catalogue, days.at(query.who.at), tower_hits=hits, user_vector=vector, per_source=per_source
        )
        drawn.append(Drawn(candidates, np.isin(candidates.items, query.targets)))
    return drawn


VALIDATION_TOP = 20
CROSSED = tuple(name for name in CANDIDATE_FEATURES if name not in (*USER_FEATURES, *ITEM_WINDOWS))
"""Features that the crosses see. Counts of what sold move with the season, and users are few: from those, crosses learn
what does not hold a month later, while the linear part takes them well (docs/quality.md)."""


@dataclass
class _Lists:
    """Orders padded to one number of candidates, for a listwise loss."""

    features: Tensor
    items: Tensor
    bought: Tensor
    real: Tensor

    def rows(self, rows: Tensor) -> "_Lists":
        return _Lists(self.features[rows], self.items[rows], self.bought[rows], self.real[rows])


def _pad(drawn: list[Drawn], size: int, rng: np.random.Generator) -> _Lists:
    """Every bought candidate and a sample of the others, `size` an order; orders without a bought one are left out."""
    drawn = [one for one in drawn if one.bought.any()]
    features = torch.zeros((len(drawn), size, len(CANDIDATE_FEATURES)))
    items = torch.zeros((len(drawn), size), dtype=torch.long)
    bought = torch.zeros((len(drawn), size))
    real = torch.zeros((len(drawn), size), dtype=torch.bool)
    for row, one in enumerate(drawn):
        order = rng.permutation(len(one.bought))
        kept = order[np.argsort(~one.bought[order], kind="stable")][:size]
        features[row, : len(kept)] = torch.from_numpy(one.candidates.features[kept])
        items[row, : len(kept)] = torch.from_numpy(one.candidates.items[kept])
        bought[row, : len(kept)] = torch.from_numpy(one.bought[kept].astype(np.float32))
        real[row, : len(kept)] = True
    return _Lists(features, items, bought, real)


@dataclass
class Ranking:
    model: PlainRanker
    curve: Curve


def fit_ranker(
    training: list[Drawn],
    validation: list[Drawn],
    *,
    items: int,
    config: RankerConfig,
    device: torch.device,
    seed: int,
    watch: Watch | None = None,
) -> Ranking:
    """Fit a linear model, then what crosses add to it until validation NDCG stops growing; keep the best epoch.

    Listwise softmax cross entropy: an order's bought candidates share the mass (Cao et al., Learning to Rank: From
    Pairwise Approach to Listwise Approach, ICML 2007). Raises ValueError without orders to learn from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    learn = _pad(training, config.candidates, rng)
    check = _pad(validation, max((len(one.bought) for one in validation), default=1), rng)
    if not len(learn.items) or not len(check.items):
        raise ValueError("no past order has a bought candidate: there is too little history to train a ranker")
    squashed = squash(learn.features[learn.real])
    mean, std = squashed.mean(dim=0), squashed.std(dim=0).clamp(min=1e-3)
    dense = Dense(
        linear=fit_linear(learn, mean=mean, std=std, penalty=config.linear_penalty),
        crossed=torch.tensor([CANDIDATE_FEATURES.index(name) for name in CROSSED]),
        mean=mean,
        std=std,
        embedding=config.embedding,
        hidden=config.hidden,
        crosses=config.crosses,
        rank=config.rank,
        dropout=config.dropout,
    )
    model = shard(
        Ranker(items=items, embedding=config.embedding, dense=dense),
        device=device,
        embedding_rate=config.embedding_rate,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(dense_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay)

    def scores_of(mine: _Lists) -> Tensor:
        """Logits [orders, candidates]; hugely negative where there is no candidate."""
        flat = mine.items[mine.real].to(device)
        jagged = KeyedJaggedTensor(keys=[ITEM], values=flat, lengths=torch.ones_like(flat, dtype=torch.int))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(mine.features[mine.real].to(device), jagged).float()
        return torch.full(mine.items.shape, -1e9, device=device).masked_scatter(mine.real.to(device), logits)

    def epoch(generator: torch.Generator) -> float:
        losses = []
        for batch in torch.randperm(len(learn.items), generator=generator).split(config.batch_orders):
            mine = learn.rows(share(batch))
            loss = listwise(scores_of(mine), mine.bought.to(device)).sum() * loss_scale(len(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def judge() -> float:
        found = 0.0
        for batch in torch.arange(len(check.items)).split(config.batch_orders):
            mine = check.rows(share(batch))
            found += float(ndcg(scores_of(mine).cpu(), mine.bought, k=VALIDATION_TOP).sum())
        return -total(found) / len(check.items)

    curve = fit(
        model, optimizer, epoch=epoch, judge=judge, epochs=config.epochs, patience=config.patience,
        seed=seed, label="ranker", watch=watch,
    )  # fmt: skip
    return Ranking(_plain(model), curve)


def listwise(scores: Tensor, bought: Tensor) -> Tensor:
    """Cross entropy of each order's bought candidates, which share the mass, [orders]; both float32 [orders, C]."""
    return -(torch.log_softmax(scores, dim=1) * bought).sum(dim=1) / bought.sum(dim=1)


def ndcg(scores: Tensor, bought: Tensor, *, k: int) -> Tensor:
    """NDCG@k of each order among its candidates, [orders]; as evaluate.list_metrics has it."""
    k = min(k, scores.shape[1])
    discounts = 1 / torch.log2(torch.arange(2, k + 2))
    hits = bought.gather(1, scores.topk(k, dim=1).indices)
    best = discounts.cumsum(0)[bought.sum(dim=1).long().clamp(1, k) - 1]
    return (hits * discounts).sum(dim=1) / best


def fit_linear(lists: _Lists, *, mean: Tensor, std: Tensor, penalty: float) -> Tensor:
    """Weights [F] of the squashed, standardised features: the least listwise loss, plus `penalty` times their squares.

    Convex, so no seed and no early stopping: what the crosses have to beat.
    """
    features = (squash(lists.features) - mean) / std
    weights = torch.zeros(features.shape[2], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        scores = (features @ weights).masked_fill(~lists.real, -1e9)
        loss = listwise(scores, lists.bought).mean() + penalty * weights.square().sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return weights.detach()


def _plain(model: DistributedModelParallel) -> PlainRanker:
    """The trained model as it stands now, on the CPU, without TorchRec."""
    return PlainRanker(table(model, ITEM), copy.deepcopy(model.module.dense).cpu()).eval()
