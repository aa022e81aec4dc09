"""Fitting the ranker: drawn candidates of past orders in, scores that order them out."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from features.candidates import CANDIDATE_FEATURES, draw
from features.catalogue import Catalogue
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
    """Train until the validation loss stops falling; keep the best epoch.

    Listwise softmax cross entropy: an order's bought candidates share the mass (Cao et al., Learning to Rank: From
    Pairwise Approach to Listwise Approach, ICML 2007). Raises ValueError without orders to learn from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
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
        seed=seed,
    )
    optimizer = torch.optim.AdamW(dense_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay)

    def loss_of(lists: _Lists, batch: Tensor) -> Tensor:
        """This process's part of the mean loss of the orders `batch`, scaled as shard.loss_scale says."""
        mine = lists.rows(share(batch))
        flat = mine.items[mine.real].to(device)
        jagged = KeyedJaggedTensor(keys=[ITEM], values=flat, lengths=torch.ones_like(flat, dtype=torch.int))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(mine.features[mine.real].to(device), jagged).float()
        scores = torch.full(mine.items.shape, -1e9, device=device).masked_scatter(mine.real.to(device), logits)
        target = mine.bought.to(device)
        losses = -(torch.log_softmax(scores, dim=1) * target).sum(dim=1) / target.sum(dim=1)
        return losses.sum() * loss_scale(len(batch))

    def epoch(generator: torch.Generator) -> float:
        losses = []
        for batch in torch.randperm(len(learn.items), generator=generator).split(config.batch_orders):
            loss = loss_of(learn, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def judge() -> float:
        parts = torch.arange(len(check.items)).split(config.batch_orders)
        value = sum(loss_of(check, batch).item() * len(batch) for batch in parts) / len(check.items)
        return total(value) / dist.get_world_size()

    curve = fit(
        model, optimizer, epoch=epoch, judge=judge, epochs=config.epochs, patience=config.patience,
        seed=seed, label="ranker", watch=watch,
    )  # fmt: skip
    return Ranking(_plain(model), curve)


def _plain(model: DistributedModelParallel) -> PlainRanker:
    """The trained model as it stands now, on the CPU, without TorchRec."""
    return PlainRanker(table(model, ITEM), copy.deepcopy(model.module.dense).cpu()).eval()
