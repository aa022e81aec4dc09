"""Fits the recommenders' models on a made-up shop and writes how it went: what tests start under torchrun, and kill.

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

ITEMS, ORDERS = 120, 203
RETRIEVAL = RetrievalConfig(width=16, content_buckets=64, batch_visits=20)
RANKER = RankerConfig(hidden=(16,), cross_rank=4, batch_visits=10, candidates=20)
CPU = torch.device("cpu")


def catalogue() -> Catalogue:
    ids = tuple(f"i{n}" for n in range(ITEMS))
    titles = tuple(f"{('RED', 'BLUE', 'GREEN')[n % 3]} thing {n // 3}" for n in range(ITEMS))
    none = np.full((ITEMS, 1), -1, dtype=np.int32)
    vectors = np.zeros((ITEMS, 1), dtype=np.float32)
    index = {name: place for place, name in enumerate(ids)}
    return Catalogue(ids, titles, np.ones(ITEMS, np.float32), none, none.astype(np.float32) * 0, vectors, index)


def queries(*, seed: int = 5) -> list[RetrievalExample]:
    """Orders of users who like one colour."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(ORDERS):
        liked = np.arange(number % 3, ITEMS, 3)
        past, bought = rng.choice(liked, 4), rng.choice(liked, 2, replace=False)
        kinds = np.full(4, columns.EVENT_TYPE_CODES["purchase"])
        made.append(RetrievalExample(Visitor(DAY * 9, past, np.arange(4) * DAY, kinds, np.ones(4), np.ones(4)), bought))
    return made


def drawn(asked: list[RetrievalExample], *, seed: int = 6) -> list[RankingExample]:
    rng = np.random.default_rng(seed)
    made = []
    for query in asked:
        items = np.union1d(query.targets, rng.choice(ITEMS, int(rng.integers(5, 20)), replace=False))
        bought = np.isin(items, query.targets)
        features = rng.normal(size=(len(items), len(CANDIDATE_FEATURES))).astype(np.float32)
        features[:, 0] += bought
        none = np.zeros(len(items), dtype=np.int64)
        made.append(RankingExample(Candidates(items, none[:, None], features, none), bought))
    return made


def fit_both(*, dropout: float, epochs: int, unfinished: Path | None) -> dict[str, LearningCurve]:
    asked = queries()
    watch = RunPaths(unfinished, unfinished / "curves", {"shop": "made up"}) if unfinished else None
    common = {"dropout": dropout, "epochs": epochs, "patience": epochs}
    retrieval = fit_two_tower(
        catalogue(), asked[:151], asked[151:], replace(RETRIEVAL, **common), device=CPU, seed=3, label="two-tower",
        paths=watch,
    )  # fmt: skip
    lists = drawn(asked)
    ranking = fit_ranker(
        lists[:151], lists[151:], items=ITEMS, config=replace(RANKER, **common), device=CPU, seed=3, paths=watch
    )
    return {"two-tower": retrieval.curve, "ranker": ranking.curve}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--unfinished", type=Path)
    asked = parser.parse_args()
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with process_group(CPU):
        curves = fit_both(dropout=asked.dropout, epochs=asked.epochs, unfinished=asked.unfinished)
        if is_leader():
            asked.out.write_text(json.dumps({name: asdict(curve) for name, curve in curves.items()}))


if __name__ == "__main__":
    main()
