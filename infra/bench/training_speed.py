"""How many samples a second the ranker trains, on made-up orders of the shape that `headrace train` has.

    python -m infra.bench.training_speed [--orders N]

A sample is one candidate of one order, forward and backward, the fused update of its embedding and the optimizer's step
included. Prints the limit beside it.
"""

import argparse
import logging
from dataclasses import replace

import numpy as np
import torch

from features.recommender.candidates import CANDIDATE_FEATURES, Candidates
from training.configs import standard
from training.core.sharding import choose_device, process_group
from training.recommender.examples import RankingExample
from training.recommender.ranker import fit_ranker

LIMIT = 40_000
ITEMS = 4_000


def made_up(orders: int, candidates: int, *, seed: int = 0) -> list[RankingExample]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(orders):
        items = rng.choice(ITEMS, candidates, replace=False)
        features = rng.lognormal(size=(candidates, len(CANDIDATE_FEATURES))).astype(np.float32)
        none = np.zeros(candidates, dtype=np.int64)
        made.append(RankingExample(Candidates(items, none[:, None], features, none), rng.random(candidates) < 0.05))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=1_500)
    orders = parser.parse_args().orders
    logging.disable(logging.INFO)
    device = choose_device()
    config = replace(standard().ranker, epochs=4, patience=4)
    with process_group(device):
        fitted = fit_ranker(
            made_up(orders, config.candidates), made_up(20, config.candidates, seed=1),
            items=ITEMS, config=config, device=device, seed=0,
        )  # fmt: skip
    seconds = sorted(fitted.curve.seconds[1:])[1]
    speed = orders * config.candidates / seconds
    print(f"ranker: {speed:,.0f} samples/s on {device} with {torch.get_num_threads()} threads (limit {LIMIT:,})")


if __name__ == "__main__":
    main()
