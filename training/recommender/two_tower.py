"""Fitting the two-tower model: visits in, item vectors and a user tower out."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.history.timeline import NoDataError
from features.recommender.candidates import Visitor, padded_histories
from features.recommender.catalogue import Catalogue
from features.recommender.content_tokens import content_tokens
from training.configs import RetrievalConfig
from training.core.sharding import dense_parameters, local_tensors, loss_scale, shard, share, table, total
from training.core.trainer import RunPaths, TrainingHistory, fit
from training.models.two_tower import CONTENT, ITEM, PooledTower, TwoTower
from training.recommender.examples import RetrievalExample

VALIDATION_TOP = 100


@dataclass
class FittedTwoTower:
    """A fitted model: float32 [items, D] vectors of unit length, and the tower that goes with them."""

    vectors: NDArray[np.float32]
    user_tower: PooledTower
    curve: TrainingHistory
    weights: dict[str, Tensor]
    """What this process trained, its optimizer of tables included: where another fit may begin."""

    @property
    def recall(self) -> float:
        """Mean share of what a validation visit bought among the VALIDATION_TOP nearest; 0 without such visits."""
        return -self.curve.best if self.curve.values else 0.0

    def user_vectors(self, visitors: list[Visitor]) -> NDArray[np.float32]:
        """Shape [B, D]; zeros for a visitor without history."""
        if not visitors:
            return np.zeros((0, self.vectors.shape[1]), dtype=np.float32)
        items, weights = padded_histories(visitors)
        with torch.no_grad():
            vectors = self.user_tower(torch.from_numpy(items), torch.from_numpy(weights)).numpy()
        known: NDArray[np.float32] = vectors * (weights.sum(axis=1, keepdims=True) > 0)
        return known


def content_of(catalogue: Catalogue, buckets: int) -> list[list[int]]:
    """The content tokens of each item."""
    categories = catalogue.categories or ("",) * len(catalogue.ids)
    rows = zip(catalogue.titles, catalogue.prices.tolist(), categories, strict=True)
    return [content_tokens(*row, buckets=buckets) for row in rows]


class _Bags:
    """The model's input: bags of items, and of what is known of them, as a KeyedJaggedTensor."""

    def __init__(self, content: list[list[int]], device: torch.device) -> None:
        self._lengths = torch.tensor([len(row) for row in content])
        self._offsets = torch.cat((torch.zeros(1, dtype=torch.long), self._lengths.cumsum(0)))
        self._tokens = torch.tensor([token for row in content for token in row], dtype=torch.long)
        self._device = device

    def jagged(self, items: Tensor, weights: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
        """items int64 and weights float32 [entries] of rows with so many entries (int64 [rows])."""
        known = self._lengths[items]
        places = torch.repeat_interleave(self._offsets[items] - (known.cumsum(0) - known), known)
        tokens = self._tokens[places + torch.arange(int(known.sum()))]
        token_weights = torch.repeat_interleave(weights / known.clamp(min=1), known)
        rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        token_lengths = torch.zeros_like(lengths).index_add_(0, rows, known)
        return KeyedJaggedTensor(
            keys=[ITEM, CONTENT],
            values=torch.cat((items, tokens)),
            weights=torch.cat((weights, token_weights)),
            lengths=torch.cat((lengths, token_lengths)).int(),
        ).to(self._device)

    def means(self, table: Tensor) -> Tensor:
        """Each item's content by the table of tokens, float32 [items, D]; zeros for an item without any."""
        return F.embedding_bag(self._tokens, table, self._offsets[:-1], mode="mean")


@dataclass(frozen=True, slots=True)
class _TrainingExample:
    """What one visit teaches: catalogue indices, one entry a kind and item, and what each entry weighs in the loss."""

    items: NDArray[np.int64]
    parts: NDArray[np.float32]


def _training_example(query: RetrievalExample, config: RetrievalConfig) -> _TrainingExample:
    """A kind's items share its weight. Its cross entropy is then the sum of those of a query for each kind."""
    weights = (("cart", config.cart_weight), ("view", config.view_weight))
    kinds = [
        (query.targets, 1.0),
        *((query.auxiliary_targets[kind], weight) for kind, weight in weights if kind in query.auxiliary_targets),
    ]
    taken = [(items, weight / len(items)) for items, weight in kinds if weight and len(items)]
    return _TrainingExample(
        np.concatenate([np.empty(0, np.int64), *(items for items, _ in taken)]),
        np.repeat(np.array([part for _, part in taken], np.float32), [len(items) for items, _ in taken]),
    )


def _together(lessons: list[_TrainingExample]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, item and weight of every entry of these lessons."""
    rows = torch.repeat_interleave(torch.tensor([len(lesson.items) for lesson in lessons], dtype=torch.long))
    items = np.concatenate([np.empty(0, np.int64), *(lesson.items for lesson in lessons)])
    parts = np.concatenate([np.empty(0, np.float32), *(lesson.parts for lesson in lessons)])
    return rows, torch.from_numpy(items), torch.from_numpy(parts)


def fit_retrieval(
    catalogue: Catalogue,
    training: list[RetrievalExample],
    validation: list[RetrievalExample],
    config: RetrievalConfig,
    *,
    device: torch.device,
    seed: int,
    label: str,
    watch: RunPaths | None = None,
    begin: FittedTwoTower | None = None,
) -> FittedTwoTower:
    """Train on visits whose users have a history, until validation recall stops growing; keep the best epoch.

    The loss is the cross entropy of a visit's items among all items, or among `config.negatives` drawn in proportion to
    how often they are taken with the logQ correction where the catalogue is larger. A purchase, and what else the
    configuration gives a weight, is an item taken; validation counts purchases alone. begin: a fit on the same
    catalogue, to go on from. Raises NoDataError without a visit to learn from.
    """
    torch.manual_seed(seed)
    count = len(catalogue.ids)
    plain = TwoTower(items=count, buckets=config.content_buckets, width=config.width, dropout=config.dropout)
    model = shard(plain, device=device, embedding_rate=config.embedding_rate, seed=seed)
    optimizer = torch.optim.AdamW(dense_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay)
    if begin:
        for name, value in local_tensors(model).items():
            value.copy_(begin.weights[name])
    bags = _Bags(content_of(catalogue, config.content_buckets), device)
    both = [(query, _training_example(query, config)) for query in training if len(query.visitor.recent_items)]
    both = [(query, lesson) for query, lesson in both if len(lesson.items)]
    if not both:
        raise NoDataError("too little history: no user who was there before has come back to buy")
    lessons = [lesson for _, lesson in both]
    validation = [query for query in validation if len(query.visitor.recent_items) and len(query.targets)]
    items, weights = (torch.from_numpy(part) for part in padded_histories([query.visitor for query, _ in both]))
    taken = torch.bincount(_together(lessons)[1], minlength=count)

    def epoch(generator: torch.Generator) -> float:
        losses = []
        for batch in torch.randperm(len(lessons), generator=generator).split(config.batch_visits):
            drawn, log_q = _draw_items([lessons[row] for row in batch.tolist()], taken, config.negatives, generator)
            rows = share(batch)
            real = weights[rows] > 0
            entries = torch.cat((items[rows][real], drawn)), torch.cat((weights[rows][real], torch.ones(len(drawn))))
            asked = bags.jagged(*entries, torch.cat((real.sum(dim=1), torch.ones_like(drawn))))
            row, item, part = _together([lessons[row] for row in rows.tolist()])
            row, place, part = (one.to(device) for one in (row, torch.searchsorted(drawn, item), part))
            # Whole steps in bf16 where the GPU has it; on the CPU fp32 is as fast at this width.
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = (model(asked, len(rows))[2] - log_q.to(device)).float()
                missed = (logits.logsumexp(dim=1)[row] - logits[row, place]) * part
                loss = missed.sum() * loss_scale(len(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def judge() -> float:
        fitted = _fitted(model, bags, TrainingHistory())
        mine = [validation[row] for row in share(torch.arange(len(validation))).tolist()]
        found = recalls(fitted, mine)
        return -total(sum(found)) / len(validation)

    curve = fit(
        model, optimizer, epoch=epoch, validate=judge if validation else None, epochs=config.epochs,
        patience=config.patience, seed=seed, label=label, paths=watch,
    )  # fmt: skip
    return _fitted(model, bags, curve)


def _draw_items(
    lessons: list[_TrainingExample], taken: Tensor, negatives: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The items a batch is told from, and log of each one's chance to be drawn (0 when all are)."""
    count = len(taken)
    if count <= negatives:
        return torch.arange(count), torch.zeros(count)
    share = (taken + 1).float() / (taken + 1).sum()
    random = torch.multinomial(share, negatives, replacement=False, generator=generator)
    drawn = torch.unique(torch.cat((random, _together(lessons)[1])))
    return drawn, torch.log(share[drawn] * negatives).clamp(max=0)


def _fitted(model: DistributedModelParallel, bags: _Bags, curve: TrainingHistory) -> FittedTwoTower:
    """The model as it stands now, on the CPU, without TorchRec."""
    items = table(model, ITEM) + bags.means(table(model, CONTENT))
    user_tower, item_tower = (copy.deepcopy(one).cpu() for one in (model.module.user_tower, model.module.item_tower))
    with torch.no_grad():
        vectors = item_tower.eval()(items).numpy()
    weights = {name: value.clone() for name, value in local_tensors(model).items()}
    return FittedTwoTower(vectors, PooledTower(items, user_tower).eval(), curve, weights)


def recalls(fitted: FittedTwoTower, queries: list[RetrievalExample]) -> list[float]:
    """Share of what each visit bought among its user's VALIDATION_TOP nearest."""
    if not queries:
        return []
    scores = fitted.user_vectors([query.visitor for query in queries]) @ fitted.vectors.T
    top = min(VALIDATION_TOP, scores.shape[1])
    nearest = np.argpartition(-scores, top - 1, axis=1)[:, :top]
    return [float(np.isin(query.targets, row).mean()) for query, row in zip(queries, nearest, strict=True)]
