"""Fits the ranker: generates candidates for past visits, trains on them, and returns the model that orders candidates.

The network is in training/models/ranker.py, its heads and losses in training/recommender/heads.py.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.recommender.candidates import CANDIDATE_FEATURES, USER_FEATURES, generate_candidates
from features.recommender.catalogue import ITEM_WINDOWS, Catalogue
from infra.progress import progress_bar
from training.configs import RankerConfig
from training.core.ranking_metrics import ndcg
from training.core.sharding import dense_parameters, gather_table, local_rows, loss_scale, shard, total
from training.core.trainer import LearningCurve, RunPaths, fit
from training.models.ranker import ITEM, RETURN, Dense, PlainRanker, Ranker, squash
from training.recommender.examples import ItemWindowsByDay, RankingExample, RetrievalExample
from training.recommender.heads import (
    LISTWISE_HEADS,
    MASKED_LOGIT,
    PURCHASE,
    PaddedLists,
    head_loss,
    initial_weights,
    supported_heads,
)
from training.recommender.two_tower import FittedTwoTower

VALIDATION_K = 20
CROSSED = tuple(name for name in CANDIDATE_FEATURES if name not in (*USER_FEATURES, *ITEM_WINDOWS))
"""Features that the crosses see. Sales counts move with the season, and users are few: from those, crosses learn what
does not hold a month later, while the linear part uses them well (docs/quality.md)."""


def ranking_examples(
    queries: list[RetrievalExample],
    catalogue: Catalogue,
    item_windows: ItemWindowsByDay,
    two_tower: FittedTwoTower,
    *,
    per_source: int,
    label: str,
) -> list[RankingExample]:
    """Generates the candidates of each query as serving does, with exact vector search, and labels them.

    per_source: most candidates from one source. label: of the progress bar.
    """
    item_windows.prepare(np.array([query.visitor.at for query in queries], dtype=np.int64))
    vectors = two_tower.user_vectors([query.visitor for query in queries])
    examples = []
    for query, vector in progress_bar(zip(queries, vectors, strict=True), total=len(queries), desc=label):
        scores = catalogue.vectors @ vector
        top = min(per_source, len(scores))
        hits = np.argpartition(-scores, top - 1)[:top] if vector.any() else np.empty(0, dtype=np.int64)
        hits = hits[np.argsort(-scores[hits], kind="stable")]
        candidates = generate_candidates(
            query.visitor,
            catalogue,
            item_windows.at(query.visitor.at),
            tower_hits=hits,
            user_vector=vector,
            per_source=per_source,
        )
        auxiliary = {name: np.isin(candidates.items, items) for name, items in query.auxiliary_targets.items()}
        examples.append(RankingExample(candidates, np.isin(candidates.items, query.targets), auxiliary))
    return examples


def _pad(examples: list[RankingExample], size: int, heads: Iterable[str], rng: np.random.Generator) -> PaddedLists:
    """Samples `size` candidates of each visit, every positive one first; visits without a positive are left out.

    Positive is what any of these heads is to predict.
    """
    all_labels = [{PURCHASE: example.bought, **example.auxiliary_labels} for example in examples]
    visits = [
        (example.candidates, labels)
        for example, labels in zip(examples, all_labels, strict=True)
        if any(labels[head].any() for head in heads if head in labels)
    ]
    features = torch.zeros((len(visits), size, len(CANDIDATE_FEATURES)))
    items = torch.zeros((len(visits), size), dtype=torch.long)
    padded_labels = {head: torch.zeros((len(visits), size)) for head in heads}
    is_candidate = torch.zeros((len(visits), size), dtype=torch.bool)
    for row, (candidates, labels) in enumerate(visits):
        order = rng.permutation(len(candidates.items))
        negative = [~labels[head][order] for head in reversed(LISTWISE_HEADS) if head in heads and head in labels]
        sampled = order[np.lexsort((np.arange(len(order)), *negative))][:size]
        features[row, : len(sampled)] = torch.from_numpy(candidates.features[sampled])
        items[row, : len(sampled)] = torch.from_numpy(candidates.items[sampled])
        is_candidate[row, : len(sampled)] = True
        for head in heads:
            if head in labels:
                padded_labels[head][row, : len(sampled)] = torch.from_numpy(labels[head][sampled].astype(np.float32))
    return PaddedLists(features, items, padded_labels, is_candidate)


@dataclass
class FittedRanker:
    """A fitted model, on the CPU, with its learning curve."""

    model: PlainRanker
    curve: LearningCurve

    @property
    def heads(self) -> dict[str, float]:
        """Returns the weight of each head in the score; "purchase" is the first."""
        return self.model.dense.heads


def fit_ranker(
    training: list[RankingExample],
    validation: list[RankingExample],
    *,
    items: int,
    config: RankerConfig,
    device: torch.device,
    seed: int,
    paths: RunPaths | None = None,
) -> FittedRanker:
    """Fits a linear model for each head, then trains crosses on top; returns the epoch with the best validation NDCG.

    Validation counts purchases alone. The loss is a listwise softmax cross entropy in which a visit's positives share
    the mass (Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007), for each head over
    the visits that have a positive; for returns it is the log loss over what was bought. items: size of the catalogue.
    Raises ValueError without visits to learn from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    loss_weights = supported_heads(training, config)
    train_lists = _pad(training, config.candidates, loss_weights, rng)
    largest = max((len(example.bought) for example in validation), default=1)
    validation_lists = _pad(validation, largest, [PURCHASE], rng)
    if not train_lists.bought.any() or not len(validation_lists.items):
        raise ValueError("too little history to train a ranker: no past visit bought one of its candidates")
    squashed = squash(train_lists.features[train_lists.is_candidate])
    mean, std = squashed.mean(dim=0), squashed.std(dim=0).clamp(min=1e-3)
    linear = initial_weights(train_lists, mean=mean, std=std, penalty=config.linear_penalty)
    score_weights = {PURCHASE: 1.0, "cart": config.cart_score, "view": config.view_score, RETURN: config.return_score}
    dense = Dense(
        linear=torch.stack([weights for weights, _ in linear.values()]),
        bias=torch.tensor([bias for _, bias in linear.values()]),
        crossed=torch.tensor([CANDIDATE_FEATURES.index(name) for name in CROSSED]),
        mean=mean,
        std=std,
        embedding=config.embedding,
        hidden=config.hidden,
        crosses=config.crosses,
        rank=config.cross_rank,
        dropout=config.dropout,
        heads={head: score_weights[head] for head in linear},
    )
    model = shard(
        Ranker(items=items, embedding=config.embedding, dense=dense),
        device=device,
        embedding_rate=config.embedding_rate,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(dense_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay)

    def predict(lists: PaddedLists) -> Tensor:
        """Returns logits [visits, candidates, H]; MASKED_LOGIT where there is no candidate."""
        candidates = lists.items[lists.is_candidate].to(device)
        jagged = KeyedJaggedTensor(keys=[ITEM], values=candidates, lengths=torch.ones_like(candidates, dtype=torch.int))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(lists.features[lists.is_candidate].to(device), jagged).float()
        padded = torch.full((*lists.items.shape, len(linear)), MASKED_LOGIT, device=device)
        return padded.masked_scatter(lists.is_candidate[:, :, None].to(device), logits)

    def epoch(generator: torch.Generator) -> float:
        losses = []
        for batch in torch.randperm(len(train_lists.items), generator=generator).split(config.batch_visits):
            lists = train_lists.rows(local_rows(batch))
            logits = predict(lists)
            head_losses = [
                loss_weights[head] * head_loss(head, logits[:, :, number], lists) for number, head in enumerate(linear)
            ]
            loss = torch.stack(head_losses).sum() * loss_scale(len(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def validate() -> float:
        ndcg_sum = 0.0
        for batch in torch.arange(len(validation_lists.items)).split(config.batch_visits):
            lists = validation_lists.rows(local_rows(batch))
            scores = model.module.dense.score(predict(lists)).cpu().masked_fill(~lists.is_candidate, MASKED_LOGIT)
            ndcg_sum += float(list_ndcg(scores, lists.bought, k=VALIDATION_K).sum())
        return -total(ndcg_sum) / len(validation_lists.items)

    curve = fit(
        model, optimizer, epoch=epoch, validate=validate, epochs=config.epochs, patience=config.patience,
        seed=seed, label="ranker", paths=paths,
    )  # fmt: skip
    return FittedRanker(_plain(model), curve)


def list_ndcg(scores: Tensor, bought: Tensor, *, k: int) -> NDArray[np.float64]:
    """Returns NDCG@k of each visit among its candidates, float64 [visits]; both arguments float32 [visits, C]."""
    hits = bought.gather(1, scores.topk(min(k, scores.shape[1]), dim=1).indices)
    return ndcg(hits.numpy(), bought.sum(dim=1).long().numpy(), k=k)


def _plain(model: DistributedModelParallel) -> PlainRanker:
    """Copies the current weights into a model on the CPU without TorchRec."""
    return PlainRanker(gather_table(model, ITEM), copy.deepcopy(model.module.dense).cpu()).eval()
