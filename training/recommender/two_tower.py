"""Fits the two-tower model: trains it on visits and returns item vectors and the user tower.

The network is in training/models/two_tower.py.
"""

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
from training.core.sharding import dense_parameters, gather_table, local_rows, local_tensors, loss_scale, shard, total
from training.core.trainer import LearningCurve, RunPaths, fit
from training.models.two_tower import CONTENT, ITEM, PooledTower, TwoTower
from training.recommender.examples import RetrievalExample

VALIDATION_K = 100


@dataclass
class FittedTwoTower:
    """A fitted model: float32 [items, D] vectors of unit length, and the user tower that goes with them."""

    vectors: NDArray[np.float32]
    user_tower: PooledTower
    curve: LearningCurve
    weights: dict[str, Tensor]
    """What this process trained, the optimizer state of its tables included: another fit may start from it."""

    @property
    def recall(self) -> float:
        """Returns the validation recall@VALIDATION_K of a visit's purchases; 0 without validation visits."""
        return -self.curve.best if self.curve.values else 0.0

    def user_vectors(self, visitors: list[Visitor]) -> NDArray[np.float32]:
        """Returns float32 [visitors, D]; zeros for a visitor without history."""
        if not visitors:
            return np.zeros((0, self.vectors.shape[1]), dtype=np.float32)
        items, weights = padded_histories(visitors)
        with torch.no_grad():
            vectors = self.user_tower(torch.from_numpy(items), torch.from_numpy(weights)).numpy()
        masked: NDArray[np.float32] = vectors * (weights.sum(axis=1, keepdims=True) > 0)
        return masked


def item_tokens(catalogue: Catalogue, buckets: int) -> list[list[int]]:
    """Returns the content tokens of each item, hashed into `buckets`."""
    categories = catalogue.categories or ("",) * len(catalogue.ids)
    rows = zip(catalogue.titles, catalogue.prices.tolist(), categories, strict=True)
    return [content_tokens(*row, buckets=buckets) for row in rows]


class _BagBuilder:
    """Builds the model's input: weighted bags of items and of their content tokens, as a KeyedJaggedTensor."""

    def __init__(self, tokens: list[list[int]], device: torch.device) -> None:
        """tokens: the content tokens of each item."""
        self._lengths = torch.tensor([len(row) for row in tokens])
        self._offsets = torch.cat((torch.zeros(1, dtype=torch.long), self._lengths.cumsum(0)))
        self._tokens = torch.tensor([token for row in tokens for token in row], dtype=torch.long)
        self._device = device

    def jagged(self, items: Tensor, weights: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
        """Returns the bags of rows with `lengths` (int64 [rows]) entries of items int64 and weights float32 [entries].

        The tokens of an item share its weight.
        """
        counts = self._lengths[items]
        starts = torch.repeat_interleave(self._offsets[items] - (counts.cumsum(0) - counts), counts)
        tokens = self._tokens[starts + torch.arange(int(counts.sum()))]
        token_weights = torch.repeat_interleave(weights / counts.clamp(min=1), counts)
        rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        token_lengths = torch.zeros_like(lengths).index_add_(0, rows, counts)
        return KeyedJaggedTensor(
            keys=[ITEM, CONTENT],
            values=torch.cat((items, tokens)),
            weights=torch.cat((weights, token_weights)),
            lengths=torch.cat((lengths, token_lengths)).int(),
        ).to(self._device)

    def content_vectors(self, table: Tensor) -> Tensor:
        """Returns the mean token embedding of each item, float32 [items, D]; zeros for an item without tokens."""
        return F.embedding_bag(self._tokens, table, self._offsets[:-1], mode="mean")


@dataclass(frozen=True, slots=True)
class _LossTargets:
    """Targets of one visit: catalogue indices, one entry for each event type and item, and each entry's loss weight."""

    items: NDArray[np.int64]
    weights: NDArray[np.float32]


def _loss_targets(query: RetrievalExample, config: RetrievalConfig) -> _LossTargets:
    """Returns the targets of a visit; the items of an event type share the weight of that type.

    The cross entropy of the visit is then the sum of those of one query for each event type.
    """
    type_weights = (("cart", config.cart_weight), ("view", config.view_weight))
    weighted = [
        (query.targets, 1.0),
        *((query.auxiliary_targets[name], weight) for name, weight in type_weights if name in query.auxiliary_targets),
    ]
    shares = [(items, weight / len(items)) for items, weight in weighted if weight and len(items)]
    return _LossTargets(
        np.concatenate([np.empty(0, np.int64), *(items for items, _ in shares)]),
        np.repeat(np.array([share for _, share in shares], np.float32), [len(items) for items, _ in shares]),
    )


def _concatenated(targets: list[_LossTargets]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns row, item and weight of every entry of these visits."""
    rows = torch.repeat_interleave(torch.tensor([len(visit.items) for visit in targets], dtype=torch.long))
    items = np.concatenate([np.empty(0, np.int64), *(visit.items for visit in targets)])
    weights = np.concatenate([np.empty(0, np.float32), *(visit.weights for visit in targets)])
    return rows, torch.from_numpy(items), torch.from_numpy(weights)


def fit_two_tower(
    catalogue: Catalogue,
    training: list[RetrievalExample],
    validation: list[RetrievalExample],
    config: RetrievalConfig,
    *,
    device: torch.device,
    seed: int,
    label: str,
    paths: RunPaths | None = None,
    initial: FittedTwoTower | None = None,
) -> FittedTwoTower:
    """Trains on visits whose users have a history until validation recall stops growing, and returns the best epoch.

    The loss is the cross entropy of a visit's items among all items or, where the catalogue is larger than
    `config.negatives`, among that many items sampled in proportion to how often they are taken, with the logQ
    correction. Items of a purchase count, and those of other event types that the configuration gives a weight;
    validation counts purchases alone. initial: a fit on the same catalogue to start from. Raises NoDataError without a
    visit to learn from.
    """
    torch.manual_seed(seed)
    count = len(catalogue.ids)
    network = TwoTower(items=count, buckets=config.content_buckets, width=config.width, dropout=config.dropout)
    model = shard(network, device=device, embedding_rate=config.embedding_rate, seed=seed)
    optimizer = torch.optim.AdamW(dense_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay)
    if initial:
        for name, value in local_tensors(model).items():
            value.copy_(initial.weights[name])
    bags = _BagBuilder(item_tokens(catalogue, config.content_buckets), device)
    visits = [(query.visitor, _loss_targets(query, config)) for query in training if len(query.visitor.recent_items)]
    visits = [(visitor, targets) for visitor, targets in visits if len(targets.items)]
    if not visits:
        raise NoDataError("too little history: no user who had visited before came back to buy")
    all_targets = [targets for _, targets in visits]
    validation = [query for query in validation if len(query.visitor.recent_items) and len(query.targets)]
    items, weights = (torch.from_numpy(array) for array in padded_histories([visitor for visitor, _ in visits]))
    target_counts = torch.bincount(_concatenated(all_targets)[1], minlength=count)

    def epoch(generator: torch.Generator) -> float:
        losses = []
        for batch in torch.randperm(len(visits), generator=generator).split(config.batch_visits):
            batch_targets = [all_targets[row] for row in batch.tolist()]
            sampled, log_q = _sample_items(batch_targets, target_counts, config.negatives, generator)
            rows = local_rows(batch)
            is_entry = weights[rows] > 0
            bag_items = torch.cat((items[rows][is_entry], sampled))
            bag_weights = torch.cat((weights[rows][is_entry], torch.ones(len(sampled))))
            inputs = bags.jagged(bag_items, bag_weights, torch.cat((is_entry.sum(dim=1), torch.ones_like(sampled))))
            row, item, weight = _concatenated([all_targets[row] for row in rows.tolist()])
            row, column, weight = (tensor.to(device) for tensor in (row, torch.searchsorted(sampled, item), weight))
            # Whole steps in bf16 where the GPU has it; on the CPU fp32 is as fast at this width.
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = (model(inputs, len(rows))[2] - log_q.to(device)).float()
                cross_entropy = (logits.logsumexp(dim=1)[row] - logits[row, column]) * weight
                loss = cross_entropy.sum() * loss_scale(len(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def validate() -> float:
        fitted = _fitted(model, bags, LearningCurve())
        queries = [validation[row] for row in local_rows(torch.arange(len(validation))).tolist()]
        return -total(sum(recalls(fitted, queries))) / len(validation)

    curve = fit(
        model, optimizer, epoch=epoch, validate=validate if validation else None, epochs=config.epochs,
        patience=config.patience, seed=seed, label=label, paths=paths,
    )  # fmt: skip
    return _fitted(model, bags, curve)


def _sample_items(
    targets: list[_LossTargets], target_counts: Tensor, negatives: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns the items that a batch's targets compete with, ascending, and the log probability of each to be sampled.

    All items, with log probability 0, where the catalogue is not larger than `negatives`.
    """
    count = len(target_counts)
    if count <= negatives:
        return torch.arange(count), torch.zeros(count)
    share = (target_counts + 1).float() / (target_counts + 1).sum()
    random = torch.multinomial(share, negatives, replacement=False, generator=generator)
    sampled = torch.unique(torch.cat((random, _concatenated(targets)[1])))
    return sampled, torch.log(share[sampled] * negatives).clamp(max=0)


def _fitted(model: DistributedModelParallel, bags: _BagBuilder, curve: LearningCurve) -> FittedTwoTower:
    """Copies the current weights into a fitted model on the CPU without TorchRec."""
    items = gather_table(model, ITEM) + bags.content_vectors(gather_table(model, CONTENT))
    towers = (model.module.user_tower, model.module.item_tower)
    user_tower, item_tower = (copy.deepcopy(tower).cpu() for tower in towers)
    with torch.no_grad():
        vectors = item_tower.eval()(items).numpy()
    weights = {name: value.clone() for name, value in local_tensors(model).items()}
    return FittedTwoTower(vectors, PooledTower(items, user_tower).eval(), curve, weights)


def recalls(fitted: FittedTwoTower, queries: list[RetrievalExample]) -> list[float]:
    """Returns the share of each visit's purchases among the VALIDATION_K items nearest to its user."""
    if not queries:
        return []
    scores = fitted.user_vectors([query.visitor for query in queries]) @ fitted.vectors.T
    top = min(VALIDATION_K, scores.shape[1])
    nearest = np.argpartition(-scores, top - 1, axis=1)[:, :top]
    return [float(np.isin(query.targets, row).mean()) for query, row in zip(queries, nearest, strict=True)]
