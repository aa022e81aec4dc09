"""`headrace train --search SECONDS`: tries settings of two-tower and ranker, and keeps those with the best validation.

The ranges are here, typed and apart from the models: the value of a fit comes in as a function, which never looks at
the gate's visits. Each try is written down as it ends, so a killed search resumes. Under torchrun all processes try the
same settings, since equal seeds and values give equal suggestions.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import optuna
import torch.distributed as dist

from infra.progress import progress_bar
from training.configs import RankerConfig, RetrievalConfig
from training.core.sharding import is_leader, total
from training.core.trainer import RunIdentity

optuna.logging.set_verbosity(optuna.logging.WARNING)

ConfigT = TypeVar("ConfigT", RetrievalConfig, RankerConfig)
Try = dict[str, Any]
"""One try as the journal holds it: label, settings (by name), value, seconds."""
STARTUP_TRIES = 8
"""Random tries before the sampler models which settings are good."""


def suggest_retrieval(trial: optuna.Trial, start: RetrievalConfig) -> RetrievalConfig:
    """Suggests settings of the two-tower; those without a range stay as in `start`."""
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
        # Without effect in a shop without views and carts.
        cart_weight=trial.suggest_categorical("cart_weight", [0.0, 0.3, 1.0]),
        view_weight=trial.suggest_categorical("view_weight", [0.0, 0.3, 1.0, 3.0]),
    )


def suggest_ranker(trial: optuna.Trial, start: RankerConfig) -> RankerConfig:
    """Suggests settings of the ranker; those without a range stay as in `start`."""
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
        # Without effect in a shop without views and carts.
        cart_loss=trial.suggest_categorical("cart_loss", [0.0, 0.1, 0.3]),
        view_loss=trial.suggest_categorical("view_loss", [0.0, 0.1, 0.3]),
        cart_score=trial.suggest_categorical("cart_score", [0.0, 0.1, 0.3]),
        view_score=trial.suggest_categorical("view_score", [0.0, 0.1, 0.3]),
    )


@dataclass(frozen=True)
class Search:
    """Searches the settings of one run within a time limit, and records every try in a journal."""

    seconds: float
    """Time for each model; the configuration's settings are always tried, and a try that passes the limit ends."""
    seed: int
    journal: Path
    say: Callable[[str], None]
    tries: list[Try] = field(default_factory=list)
    """All tries so far, of every model."""

    def best(
        self,
        start: ConfigT,
        *,
        suggest: Callable[[optuna.Trial, ConfigT], ConfigT],
        value: Callable[[ConfigT], float],
        label: str,
        metric: str,
        identity: RunIdentity,
    ) -> ConfigT:
        """Returns the settings with the highest `value` (the same in every process); `start` where no other beats it.

        identity: only tries of a run with an equal one are resumed. Tree-structured Parzen estimator (Bergstra et al.,
        Algorithms for Hyper-Parameter Optimization, NeurIPS 2011).
        """
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=STARTUP_TRIES)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        recorded, best, spent = self._recorded_tries(label, identity), start, 0.0
        values: list[float] = []
        with progress_bar(total=self.seconds, desc=f"search {label}", unit="s", disable=not is_leader()) as bar:
            while not values or spent < self.seconds:
                started = time.perf_counter()
                # The first try is the start itself, which may lie outside the ranges.
                trial = study.ask() if values else None
                settings = start if trial is None else suggest(trial, start)
                if len(values) < len(recorded):
                    result = recorded[len(values)]
                else:
                    measured = value(settings)
                    seconds = total(time.perf_counter() - started) / dist.get_world_size()
                    result = {"label": label, "settings": asdict(settings), "value": measured, "seconds": seconds}
                    self._record(result, identity)
                if trial is not None:
                    study.tell(trial, result["value"])
                if not values or result["value"] > max(values):
                    best = settings
                values.append(result["value"])
                self.tries.append(result)
                spent += result["seconds"]
                bar.set_postfix(tries=len(values), best=f"{max(values):.4f}", refresh=False)
                bar.update(max(0.0, min(spent, self.seconds) - bar.n))
        summary = f"{metric} {values[0]:.4f} at the start, {max(values):.4f} at best"
        self.say(f"search {label}: {len(values)} settings in {spent:.0f} s, {summary}")
        return best

    def _recorded_tries(self, label: str, identity: RunIdentity) -> list[Try]:
        """Returns the tries of this label by a killed run, or none unless every process finds equally many."""
        lines = [json.loads(line) for line in self._journal_lines()]
        recorded = [line["try"] for line in lines if line["facts"] == identity and line["try"]["label"] == label]
        agree = total(len(recorded)) == len(recorded) * dist.get_world_size()
        return recorded if total(agree) == dist.get_world_size() else []

    def _journal_lines(self) -> list[str]:
        """Returns the lines of the journal, none where there is no journal yet."""
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def _record(self, result: Try, identity: RunIdentity) -> None:
        """Appends a try to the journal, which a kill leaves whole."""
        if is_leader():
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.journal.with_suffix(".half")
            unfinished.write_text("\n".join([*self._journal_lines(), json.dumps({"facts": identity, "try": result})]))
            unfinished.replace(self.journal)
