"""Fits the recommenders' models on a simulated shop, writes their curves; tests start it under torchrun, and kill it.

python -m tests.training.shop_worker OUT.json [--dropout D] [--epochs N] [--unfinished FOLDER]
"""

import argparse
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from features.contract import columns
from features.contract.timestamps import DAY
from features.recommender.candidates import CANDIDATE_FEATURES, Candidates, Visitor
from features.recommender.catalogue import Catalogue
from training.configs import RankerConfig, RetrievalConfig
from training.core.sharding import is_leader, process_group
from training.core.trainer import LearningCurve, RunPaths
from training.recommender.examples import RankingExample, RetrievalExample
from training.recommender.ranker import fit_ranker
from training.recommender.two_tower import fit_two_tower

ITEMS, VISITS = 120, 203
RETRIEVAL = RetrievalConfig(width=16, content_buckets=64, batch_visits=20)
RANKER = RankerConfig(hidden=(16,), cross_rank=4, batch_visits=10, candidates=20)
CPU = torch.device("cpu")


def catalogue() -> Catalogue:
    ids = tuple(f"i{n}" for n in range(ITEMS))
    titles = tuple(f"{('RED', 'BLUE', 'GREEN')[n % 3]} thing {n // 3}" for n in range(ITEMS))
    none = np.full((ITEMS, 1), -1, dtype=np.int32)
    vectors = np.zeros((ITEMS, 1), dtype=np.float32)
    index = {name: row for row, name in enumerate(ids)}
    return Catalogue(ids, titles, np.ones(ITEMS, np.float32), none, none.astype(np.float32) * 0, vectors, index)


def queries(*, seed: int = 5) -> list[RetrievalExample]:
    """Returns visits of users who like one colour."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(VISITS):
        liked = np.arange(number % 3, ITEMS, 3)
        past, bought = rng.choice(liked, 4), rng.choice(liked, 2, replace=False)
        kinds = np.full(4, columns.EVENT_TYPE_CODES["purchase"])
        examples.append(
            RetrievalExample(Visitor(DAY * 9, past, np.arange(4) * DAY, kinds, np.ones(4), np.ones(4)), bought)
        )
    return examples


def with_candidates(queries: list[RetrievalExample], *, seed: int = 6) -> list[RankingExample]:
    """Returns random candidates of each query, of which the bought ones have a higher first feature."""
    rng = np.random.default_rng(seed)
    examples = []
    for query in queries:
        items = np.union1d(query.targets, rng.choice(ITEMS, int(rng.integers(5, 20)), replace=False))
        bought = np.isin(items, query.targets)
        features = rng.normal(size=(len(items), len(CANDIDATE_FEATURES))).astype(np.float32)
        features[:, 0] += bought
        none = np.zeros(len(items), dtype=np.int64)
        examples.append(RankingExample(Candidates(items, none[:, None], features, none), bought))
    return examples


def fit_both(*, dropout: float, epochs: int, unfinished: Path | None) -> dict[str, LearningCurve]:
    visits = queries()
    paths = RunPaths(unfinished, unfinished / "curves", {"shop": "simulated"}) if unfinished else None
    common = {"dropout": dropout, "epochs": epochs, "patience": epochs}
    retrieval = fit_two_tower(
        catalogue(), visits[:151], visits[151:], replace(RETRIEVAL, **common), device=CPU, seed=3, label="two-tower",
        paths=paths,
    )  # fmt: skip
    lists = with_candidates(visits)
    ranking = fit_ranker(
        lists[:151], lists[151:], items=ITEMS, config=replace(RANKER, **common), device=CPU, seed=3, paths=paths
    )
    return {"two-tower": retrieval.curve, "ranker": ranking.curve}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--unfinished", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with process_group(CPU):
        curves = fit_both(dropout=arguments.dropout, epochs=arguments.epochs, unfinished=arguments.unfinished)
        if is_leader():
            arguments.out.write_text(json.dumps({name: asdict(curve) for name, curve in curves.items()}))


if __name__ == "__main__":
    main()
