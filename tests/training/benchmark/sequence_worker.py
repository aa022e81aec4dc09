"""Fits the sequence model on users who walk up a ring of items; tests start it under torchrun, and kill it.

python -m tests.training.benchmark.sequence_worker OUT.json [--dropout D] [--epochs N] [--users N] [--unfinished FOLDER]
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from training.benchmark.interactions import Sequences
from training.benchmark.sequence import FittedSequence, SequenceConfig, fit_sequence
from training.core.sharding import is_leader, process_group
from training.core.trainer import RunPaths

CONFIG = SequenceConfig(width=16, length=8, batch=16, learning_rate=1e-2, average=0.9, epochs=6, validate_every=1)
ITEMS = 20
CPU = torch.device("cpu")


def ring(users: int = 90) -> Sequences:
    """Returns users who walk up a ring of ITEMS items."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 15, users)
    items = np.concatenate([(rng.integers(ITEMS) + np.arange(length)) % ITEMS for length in lengths])
    return Sequences(np.concatenate(([0], np.cumsum(lengths))), items, np.arange(len(items)))


def next_item_accuracy(fitted: FittedSequence) -> float:
    """Returns how often the next item of the ring scores best after a walk of three."""
    walks = (np.arange(ITEMS)[:, None] + np.arange(3)).ravel() % ITEMS
    inputs = Sequences(np.arange(ITEMS + 1) * 3, walks, np.arange(len(walks)))
    return float((fitted.scores(inputs).argmax(axis=1) == (np.arange(ITEMS) + 3) % ITEMS).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--dropout", type=float, default=CONFIG.dropout)
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--users", type=int, default=90)
    parser.add_argument("--unfinished", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = RunPaths(arguments.unfinished, arguments.unfinished / "curves", {}) if arguments.unfinished else None
    config = replace(CONFIG, dropout=arguments.dropout, epochs=arguments.epochs, patience=arguments.epochs)
    with process_group(CPU):
        fitted = fit_sequence(
            ring(arguments.users),
            items=ITEMS,
            config=config,
            validate=next_item_accuracy,
            device=CPU,
            seed=5,
            paths=paths,
        )
        if is_leader():
            arguments.out.write_text(json.dumps(asdict(fitted.curve) | {"table": fitted.table.tolist()}))


if __name__ == "__main__":
    main()
