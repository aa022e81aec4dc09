"""Fitting the ranker: drawn candidates of past visits in, scores that order them out."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from features.recommender.candidates import CANDIDATE_FEATURES, USER_FEATURES, generate_candidates
from features.recommender.catalogue import ITEM_WINDOWS, Catalogue
from training.configs import RankerConfig
from training.core.sharding import dense_parameters, loss_scale, shard, share, table, total
from training.core.trainer import RunPaths, TrainingHistory, fit
from training.models.ranker import ITEM, RETURN, Dense, PlainRanker, Ranker, squash
from training.recommender.examples import ItemWindowsByDay, RankingExample, RetrievalExample
from training.recommender.heads import (
    LISTWISE,
    MASKED_LOGIT,
    PURCHASE,
    PaddedLists,
    head_loss,
    initial_weights,
    supported,
)
from training.recommender.two_tower import FittedTwoTower


def ranking_examples(
    queries: list[RetrievalExample],
    catalogue: Catalogue,
    days: ItemWindowsByDay,
    fitted: FittedTwoTower,
    *,
    per_source: int,
    label: str,
) -> list[RankingExample]:
    """Candidates of each query, drawn as in service (vector search exact)."""
    days.prepare(np.array([query.visitor.at for query in queries], dtype=np.int64))
    vectors = fitted.user_vectors([query.visitor for query in queries])
    drawn = []
    for query, vector in tqdm(zip(queries, vectors, strict=True), total=len(queries), desc=label, leave=False):
        scores = catalogue.vectors @ vector
        top = min(per_source, len(scores))
        hits = np.argpartition(-scores, top - 1)[:top] if vector.any() else np.empty(0, dtype=np.int64)
        hits = hits[np.argsort(-scores[hits], kind="stable")]
        candidates = generate_candidates(
            query.visitor,
            catalogue,
            days.at(query.visitor.at),
            tower_hits=hits,
            user_vector=vector,
            per_source=per_source,
        )
        also = {kind: np.isin(candidates.items, items) for kind, items in query.auxiliary_targets.items()}
        drawn.append(RankingExample(candidates, np.isin(candidates.items, query.targets), also))
    return drawn


VALIDATION_TOP = 20
CROSSED = tuple(name for name in CANDIDATE_FEATURES if name not in (*USER_FEATURES, *ITEM_WINDOWS))
"""Features that the crosses see. Counts of what sold move with the season, and users are few: from those, crosses learn
what does not hold a month later, while the linear part takes them well (docs/quality.md)."""


def _pad(drawn: list[RankingExample], size: int, heads: Iterable[str], rng: np.random.Generator) -> PaddedLists:
    """Every positive candidate and a sample of the others, `size` a visit; visits without a positive one of these heads
    are left out."""
    marks = [{PURCHASE: one.bought, **one.auxiliary_labels} for one in drawn]
    kept = [row for row, one in enumerate(marks) if any(one[head].any() for head in heads if head in one)]
    features = torch.zeros((len(kept), size, len(CANDIDATE_FEATURES)))
    items = torch.zeros((len(kept), size), dtype=torch.long)
    labels = {head: torch.zeros((len(kept), size)) for head in heads}
    real = torch.zeros((len(kept), size), dtype=torch.bool)
    for row, (candidates, mine) in enumerate((drawn[place].candidates, marks[place]) for place in kept):
        order = rng.permutation(len(candidates.items))
        taken = [~mine[head][order] for head in reversed(LISTWISE) if head in heads and head in mine]
        chosen = order[np.lexsort((np.arange(len(order)), *taken))][:size]
        features[row, : len(chosen)] = torch.from_numpy(candidates.features[chosen])
        items[row, : len(chosen)] = torch.from_numpy(candidates.items[chosen])
        real[row, : len(chosen)] = True
        for head in heads:
            if head in mine:
                labels[head][row, : len(chosen)] = torch.from_numpy(mine[head][chosen].astype(np.float32))
    return PaddedLists(features, items, labels, real)


@dataclass
class FittedRanker:
    model: PlainRanker
    curve: TrainingHistory

    @property
    def heads(self) -> dict[str, float]:
        """What each head weighs in the score; "purchase" is the first."""
        return self.model.dense.heads


def fit_ranker(
    training: list[RankingExample],
    validation: list[RankingExample],
    *,
    items: int,
    config: RankerConfig,
    device: torch.device,
    seed: int,
    watch: RunPaths | None = None,
) -> FittedRanker:
    """Fit a linear model a head, then what crosses add until the validation NDCG of what is bought stops growing; keep
    the best epoch.

    Listwise softmax cross entropy: what a visit took shares the mass (Cao et al., Learning to Rank: From Pairwise
    Approach to Listwise Approach, ICML 2007), for each head over the visits that tell it something; returns: log loss
    over what was bought. Raises ValueError without visits to learn from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    losses = supported(training, config)
    learn = _pad(training, config.candidates, losses, rng)
    check = _pad(validation, max((len(one.bought) for one in validation), default=1), [PURCHASE], rng)
    if not learn.bought.any() or not len(check.items):
        raise ValueError("no past visit has a bought candidate: there is too little history to train a ranker")
    squashed = squash(learn.features[learn.is_candidate])
    mean, std = squashed.mean(dim=0), squashed.std(dim=0).clamp(min=1e-3)
    begun = initial_weights(learn, mean=mean, std=std, penalty=config.linear_penalty)
    scored = {PURCHASE: 1.0, "cart": config.cart_score, "view": config.view_score, RETURN: config.return_score}
    dense = Dense(
        linear=torch.stack([weights for weights, _ in begun.values()]),
        bias=torch.tensor([bias for _, bias in begun.values()]),
        crossed=torch.tensor([CANDIDATE_FEATURES.index(name) for name in CROSSED]),
        mean=mean,
        std=std,
        embedding=config.embedding,
        hidden=config.hidden,
        crosses=config.crosses,
        rank=config.cross_rank,
        dropout=config.dropout,
        heads={head: scored[head] for head in begun},
    )
    model = shard(
        Ranker(items=items, embedding=config.embedding, dense=dense),
        device=device,
        embedding_rate=config.embedding_rate,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(dense_parameters(model), lr=config.learning_rate, weight_decay=config.weight_decay)

    def logits_of(mine: PaddedLists) -> Tensor:
        """Logits [visits, candidates, H]; hugely negative where there is no candidate."""
        flat = mine.items[mine.is_candidate].to(device)
        jagged = KeyedJaggedTensor(keys=[ITEM], values=flat, lengths=torch.ones_like(flat, dtype=torch.int))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(mine.features[mine.is_candidate].to(device), jagged).float()
        whole = torch.full((*mine.items.shape, len(begun)), MASKED_LOGIT, device=device)
        return whole.masked_scatter(mine.is_candidate[:, :, None].to(device), logits)

    def epoch(generator: torch.Generator) -> float:
        seen = []
        for batch in torch.randperm(len(learn.items), generator=generator).split(config.batch_visits):
            mine = learn.rows(share(batch))
            logits = logits_of(mine)
            each = [losses[head] * head_loss(head, logits[:, :, place], mine) for place, head in enumerate(begun)]
            loss = torch.stack(each).sum() * loss_scale(len(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return float(np.mean(seen))

    def judge() -> float:
        found = 0.0
        for batch in torch.arange(len(check.items)).split(config.batch_visits):
            mine = check.rows(share(batch))
            scores = model.module.dense.score(logits_of(mine)).cpu().masked_fill(~mine.is_candidate, MASKED_LOGIT)
            found += float(ndcg(scores, mine.bought, k=VALIDATION_TOP).sum())
        return -total(found) / len(check.items)

    curve = fit(
        model, optimizer, epoch=epoch, validate=judge, epochs=config.epochs, patience=config.patience,
        seed=seed, label="ranker", paths=watch,
    )  # fmt: skip
    return FittedRanker(_plain(model), curve)


def ndcg(scores: Tensor, bought: Tensor, *, k: int) -> Tensor:
    """NDCG@k of each visit among its candidates, [visits]; as evaluate.list_metrics has it."""
    k = min(k, scores.shape[1])
    discounts = 1 / torch.log2(torch.arange(2, k + 2))
    hits = bought.gather(1, scores.topk(k, dim=1).indices)
    best = discounts.cumsum(0)[bought.sum(dim=1).long().clamp(1, k) - 1]
    return (hits * discounts).sum(dim=1) / best


def _plain(model: DistributedModelParallel) -> PlainRanker:
    """The trained model as it stands now, on the CPU, without TorchRec."""
    return PlainRanker(table(model, ITEM), copy.deepcopy(model.module.dense).cpu()).eval()
