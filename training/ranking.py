"""Fitting the ranker: drawn candidates of past orders in, scores that order them out."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from features.candidates import CANDIDATE_FEATURES, draw
from features.catalogue import Catalogue
from training.configs import RankerConfig
from training.data import Drawn, ItemDays, Query
from training.models.ranker import ITEM, Dense, PlainRanker, Ranker, squash
from training.retrieval import Retrieval
from training.shard import dense_parameters, shard, table


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
    loss: float
    """Best validation loss."""
    epochs: int


def fit_ranker(
    training: list[Drawn],
    validation: list[Drawn],
    *,
    items: int,
    config: RankerConfig,
    device: torch.device,
    seed: int,
) -> Ranking:
    """Train until the validation loss stops falling; keep the best epoch.

    Listwise softmax cross entropy: an order's bought candidates share the mass (Cao et al., Learning to Rank: From
    Pairwise Approach to Listwise Approach, ICML 2007). Raises ValueError without orders to learn from.
    """
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    learn, check = _pad(training, config.candidates, rng), _pad(validation, config.candidates, rng)
    if not len(learn.items) or not len(check.items):
        raise ValueError("no past order has a bought candidate: there is too little history to train a ranker")
    squashed = squash(learn.features[learn.real])
    dense = Dense(
        mean=squashed.mean(dim=0),
        std=squashed.std(dim=0).clamp(min=1e-3),
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
    )
    optimizer = torch.optim.AdamW(dense_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay)

    def loss_of(batch: _Lists) -> Tensor:
        flat = batch.items[batch.real].to(device)
        jagged = KeyedJaggedTensor(keys=[ITEM], values=flat, lengths=torch.ones_like(flat, dtype=torch.int))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(batch.features[batch.real].to(device), jagged).float()
        scores = torch.full(batch.items.shape, -1e9, device=device).masked_scatter(batch.real.to(device), logits)
        target = batch.bought.to(device)
        return -((torch.log_softmax(scores, dim=1) * target).sum(dim=1) / target.sum(dim=1)).mean()

    best: Ranking | None = None
    progress = tqdm(range(config.epochs), desc="ranker", unit="epoch", leave=False)
    for epoch in progress:
        model.train()
        for rows in torch.randperm(len(learn.items), generator=generator).split(config.batch_orders):
            loss = loss_of(learn.rows(rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            parts = torch.arange(len(check.items)).split(config.batch_orders)
            value = sum(loss_of(check.rows(rows)).item() * len(rows) for rows in parts) / len(check.items)
        progress.set_postfix(loss=f"{value:.4f}")
        if best is None or value < best.loss:
            best = Ranking(_plain(model), value, epoch + 1)
        elif epoch + 1 - best.epochs >= config.patience:
            break
    assert best is not None
    return best


def _plain(model: DistributedModelParallel) -> PlainRanker:
    """The trained model as it stands now, on the CPU, without TorchRec."""
    return PlainRanker(table(model, ITEM), copy.deepcopy(model.module.dense).cpu()).eval()
