"""`headrace train --search SECONDS`: settings of the two-tower and of the ranker, tried by their validation value.

The ranges stand here, typed, beside no model: what a fit is worth comes in as a function, and never looks at the gate's
visits. Each try is written down as it ends, so a search that was killed goes on; under torchrun all processes try the
same settings, since the same seed and the same values suggest the same.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import optuna
import torch.distributed as dist
from tqdm import tqdm

from training.configs import RankerConfig, RetrievalConfig
from training.core.sharding import is_leader, total
from training.core.trainer import Facts

optuna.logging.set_verbosity(optuna.logging.WARNING)

C = TypeVar("C", RetrievalConfig, RankerConfig)
Try = dict[str, Any]
"""As the journal holds it: label, settings (by name), value, seconds."""
STARTUP_TRIES = 8
"""Tries at random before the sampler models what is good."""


def suggest_retrieval(trial: optuna.Trial, start: RetrievalConfig) -> RetrievalConfig:
    """Settings of the two-tower to try; what is not named stays as in `start`."""
    return replace(
        start,
        width=trial.suggest_categorical("width", [32, 64, 96, 128]),
        content_buckets=trial.suggest_categorical("content_buckets", [2048, 4096, 8192, 16384]),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
        epochs=trial.suggest_int("epochs", 2, 12),
        batch_visits=trial.suggest_categorical("batch_visits", [64, 128, 256]),
        learning_rate=trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        embedding_rate=trial.suggest_float("embedding_rate", 0.01, 0.5, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        # What a shop without looks and carts cannot learn from: there these change nothing.
        cart_weight=trial.suggest_categorical("cart_weight", [0.0, 0.3, 1.0]),
        view_weight=trial.suggest_categorical("view_weight", [0.0, 0.3, 1.0, 3.0]),
    )


def suggest_ranker(trial: optuna.Trial, start: RankerConfig) -> RankerConfig:
    """Settings of the ranker to try; what is not named stays as in `start`."""
    width = trial.suggest_categorical("hidden", [32, 64, 96, 192])
    return replace(
        start,
        embedding=trial.suggest_categorical("embedding", [4, 8, 16]),
        hidden=(width, width // 2),
        crosses=trial.suggest_int("crosses", 1, 4),
        cross_rank=trial.suggest_categorical("cross_rank", [8, 16, 24, 48]),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
        epochs=trial.suggest_int("epochs", 2, 12),
        batch_visits=trial.suggest_categorical("batch_visits", [16, 32, 64]),
        linear_penalty=trial.suggest_float("linear_penalty", 1e-4, 1e-1, log=True),
        learning_rate=trial.suggest_float("learning_rate", 3e-5, 3e-3, log=True),
        embedding_rate=trial.suggest_float("embedding_rate", 3e-4, 0.1, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        # Heads that a shop without looks and carts cannot make: there these change nothing.
        cart_loss=trial.suggest_categorical("cart_loss", [0.0, 0.1, 0.3]),
        view_loss=trial.suggest_categorical("view_loss", [0.0, 0.1, 0.3]),
        cart_score=trial.suggest_categorical("cart_score", [0.0, 0.1, 0.3]),
        view_score=trial.suggest_categorical("view_score", [0.0, 0.1, 0.3]),
    )


@dataclass(frozen=True)
class Search:
    """One run's search: how long, and where its tries are written down."""

    seconds: float
    """For each model; the try that passes it is finished, and the start's own is always made."""
    seed: int
    journal: Path
    say: Callable[[str], None]
    tries: list[Try] = field(default_factory=list)
    """All that were made, of every model."""

    def best(
        self,
        start: C,
        *,
        suggest: Callable[[optuna.Trial, C], C],
        value: Callable[[C], float],
        label: str,
        metric: str,
        facts: Facts,
    ) -> C:
        """The settings with the highest `value` (the same in every process); `start` where no other beats it.

        facts: what tries of a killed run must agree on to be gone on from: its configuration and data, as JSON.
        Tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011).
        """
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=STARTUP_TRIES)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        known, best, spent = self._known(label, facts), start, 0.0
        values: list[float] = []
        with tqdm(total=self.seconds, desc=f"search {label}", unit="s", leave=False, disable=not is_leader()) as bar:
            while not values or spent < self.seconds:
                started = time.perf_counter()
                # The first try is the start itself, which may lie outside the ranges.
                trial = study.ask() if values else None
                settings = start if trial is None else suggest(trial, start)
                if len(values) < len(known):
                    made = known[len(values)]
                else:
                    found = value(settings)
                    seconds = total(time.perf_counter() - started) / dist.get_world_size()
                    made = {"label": label, "settings": asdict(settings), "value": found, "seconds": seconds}
                    self._write(made, facts)
                if trial is not None:
                    study.tell(trial, made["value"])
                if not values or made["value"] > max(values):
                    best = settings
                values.append(made["value"])
                self.tries.append(made)
                spent += made["seconds"]
                bar.set_postfix(tries=len(values), best=f"{max(values):.4f}", refresh=False)
                bar.update(max(0.0, min(spent, self.seconds) - bar.n))
        told = f"{metric} {values[0]:.4f} as it was, {max(values):.4f} at best"
        self.say(f"search {label}: {len(values)} settings in {spent:.0f} s, {told}")
        return best

    def _known(self, label: str, facts: Facts) -> list[Try]:
        """Tries of this label that a killed run has made, if every process sees as many."""
        made = [json.loads(line) for line in self._lines()]
        known = [one["try"] for one in made if one["facts"] == facts and one["try"]["label"] == label]
        agree = total(len(known)) == len(known) * dist.get_world_size()
        return known if total(agree) == dist.get_world_size() else []

    def _lines(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def _write(self, made: Try, facts: Facts) -> None:
        if is_leader():
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            half = self.journal.with_suffix(".half")
            half.write_text("\n".join([*self._lines(), json.dumps({"facts": facts, "try": made})]))
            half.replace(self.journal)  # a kill leaves the tries before
