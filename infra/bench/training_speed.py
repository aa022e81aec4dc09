"""Measures how many samples a second the ranker trains on, with random visits of the shape that `headrace train` has.

    python -m infra.bench.training_speed [--visits N]

A sample is one candidate of one visit, with forward and backward pass, the fused update of its embedding and the
optimizer's step. Prints the required speed beside the measured one.
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

REQUIRED_SPEED = 40_000
"""Samples a second."""
ITEMS = 4_000


def random_visits(visits: int, candidates: int, *, seed: int = 0) -> list[RankingExample]:
    """Returns visits with random features, of whose candidates one in twenty was bought."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(visits):
        items = rng.choice(ITEMS, candidates, replace=False)
        features = rng.lognormal(size=(candidates, len(CANDIDATE_FEATURES))).astype(np.float32)
        zeros = np.zeros(candidates, dtype=np.int64)
        bought = rng.random(candidates) < 0.05
        examples.append(RankingExample(Candidates(items, zeros[:, None], features, zeros), bought))
    return examples


def main() -> None:
    """Trains four epochs and prints the speed of the median of the last three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visits", type=int, default=1_500)
    visits = parser.parse_args().visits
    logging.disable(logging.INFO)
    device = choose_device()
    config = replace(standard().ranker, epochs=4, patience=4)
    with process_group(device):
        fitted = fit_ranker(
            random_visits(visits, config.candidates), random_visits(20, config.candidates, seed=1),
            items=ITEMS, config=config, device=device, seed=0,
        )  # fmt: skip
    seconds = sorted(fitted.curve.seconds[1:])[1]
    speed = visits * config.candidates / seconds
    threads = torch.get_num_threads()
    print(f"ranker: {speed:,.0f} samples/s on {device} with {threads} threads (required: {REQUIRED_SPEED:,})")


if __name__ == "__main__":
    main()
