"""`headrace bench quality`: any models on any data, chosen on validation cases, judged once on the test cases.

The same budget of tuning for all, the same code that measures all, and one JSON line or a table for people.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch.distributed as dist
from tqdm import tqdm

from training.benchmark.interactions import read_interactions
from training.benchmark.metrics import Measured, measure, ndcg
from training.benchmark.models import OWN, BenchmarkModel, Fitted, Hyperparameters
from training.benchmark.peers import PEERS, Peer, PeerError
from training.benchmark.protocols import LEAVE_ONE_OUT, TIME_SPLIT, Split, leave_one_out, new_only, time_split
from training.core.sharding import choose_device, is_leader, process_group, total

optuna.logging.set_verbosity(optuna.logging.WARNING)

KS = (10, 20)
BASELINES = ("popularity", "item_knn")
"""Always beside the models that are asked for."""


class QualityError(Exception):
    """The bench was asked for something that it cannot do; the message says what to change."""


@dataclass(frozen=True)
class Request:
    data: Path
    protocol: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    split_at: str | None = None
    max_length: int | None = None
    mapping: dict[str, str] | None = None
    positive: tuple[str, ...] = ()
    header: bool = True
    tune_seconds: float = 0.0
    """Time that each model may spend on trying settings, beyond its first try with its own; 0: no tuning."""
    fit_seconds: float = 1200.0
    """A single fit of a model that learns by epochs stops after this long."""


def run(request: Request, *, as_json: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run every model and report; returns what the JSON line holds.

    Under torchrun every process calls it: the sequence model is fitted together, and the first process speaks.
    Raises QualityError, DataError or PeerError with what to change.
    """
    with process_group(choose_device()):
        return _run(request, as_json=as_json, say=say if is_leader() else lambda _: None)


def _run(request: Request, *, as_json: bool, say: Callable[[str], None]) -> dict[str, Any]:
    entrants = _benchmark_models(request)
    try:
        split = _split(request)
        if not as_json:
            say(_told(split))
        rows = []
        for entrant in tqdm(entrants, desc="models", unit="model", leave=False, disable=None if is_leader() else True):
            rows += _evaluate(entrant, split, request)
            if not as_json:
                say(_line(rows[-1]))
    finally:
        for entrant in entrants:
            if isinstance(entrant, Peer):
                entrant.close()
    result = {
        "data": request.data.name, "protocol": request.protocol, "users": len(split.test), "items": split.items,
        "mask_history": split.mask_history, "rows": rows,
    }  # fmt: skip
    say(json.dumps(result) if as_json else _table(rows))
    return result


def _benchmark_models(request: Request) -> list[BenchmarkModel]:
    known = (*OWN, *PEERS)
    unknown = [name for name in request.models if name not in known]
    if unknown:
        raise QualityError(f"--model {','.join(unknown)}: the models are {', '.join(known)}")
    names = dict.fromkeys((*BASELINES, *request.models))
    if dist.get_world_size() > 1 and (theirs := [name for name in names if name in PEERS]):
        raise QualityError(f"--model {','.join(theirs)}: peers are fitted by one process: run them without torchrun")
    peers = {name: Peer(name) for name in names if name in PEERS}
    return [peers[name] if name in peers else OWN[name]() for name in names]


def _split(request: Request) -> Split:
    data = read_interactions(request.data, mapping=request.mapping, positive=request.positive, header=request.header)
    if request.protocol == LEAVE_ONE_OUT:
        if request.split_at:
            raise QualityError("--split-at belongs to --protocol time-split")
        return leave_one_out(data)
    if request.protocol != TIME_SPLIT:
        raise QualityError(f"--protocol {request.protocol}: there are {LEAVE_ONE_OUT} and {TIME_SPLIT}")
    if not request.split_at:
        raise QualityError("--protocol time-split needs --split-at, for example --split-at 2011-11-09")
    try:
        moment = datetime.fromisoformat(request.split_at)
    except ValueError as error:
        raise QualityError(
            f"--split-at {request.split_at}: write a time such as 2011-11-09 or 2011-11-09T12:00"
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return time_split(data, split_at=int(moment.timestamp() * 1000))


def _evaluate(entrant: BenchmarkModel, split: Split, request: Request) -> list[dict[str, Any]]:
    """One row a seed: settings chosen once with the first seed, then a judged fit with each."""
    own: Hyperparameters = {} if request.max_length is None else {"length": request.max_length}
    chosen, trials = _choose(entrant, split, request, own)
    rows = []
    for seed in request.seeds:
        started = time.perf_counter()
        fitted = entrant.fit(split, chosen, judged=True, seed=seed, seconds=request.fit_seconds)
        rows.append(
            _row(entrant.name, split, fitted, seed=seed)
            | {"fit_s": round(time.perf_counter() - started, 2), "trials": trials, "settings": chosen | fitted.learnt}
        )
    return rows


def _choose(
    entrant: BenchmarkModel, split: Split, request: Request, own: Hyperparameters
) -> tuple[Hyperparameters, int]:
    """The settings with the best validation NDCG@10 that the budget finds, and how many were tried.

    Settings with which a peer fails (its factors diverge, say) count as tried.
    """
    if not request.tune_seconds and not split.refits:
        return own, 0
    best: tuple[float, Hyperparameters] = (-1.0, own)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=request.seeds[0], n_startup_trials=5)
    )
    started, trials = time.perf_counter(), 0
    while True:
        trial = study.ask() if trials else None
        settings = own if trial is None else entrant.suggest(trial) | own
        try:
            fitted = entrant.fit(split, settings, judged=False, seed=request.seeds[0], seconds=request.fit_seconds)
        except PeerError:
            if trial is None:  # with its own settings it must not fail
                raise
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            value = ndcg(fitted.lists, split.validation, items=split.items)
            if trial is not None:
                study.tell(trial, value)
            if value > best[0]:
                best = (value, settings | fitted.learnt)
        trials += 1
        if total(time.perf_counter() - started) / dist.get_world_size() > request.tune_seconds:
            return best[1], trials


def _row(name: str, split: Split, fitted: Fitted, *, seed: int) -> dict[str, Any]:
    def measured(lists: np.ndarray, cases: Any) -> Measured:
        return measure(lists, cases, learnt=split.final, items=split.items, ks=KS, seed=seed)

    whole = measured(fitted.lists, split.test)
    row: dict[str, Any] = {"model": name, "seed": seed}
    row |= {metric: round(value, 5) for metric, value in whole.values.items()}
    row["intervals"] = {metric: [round(end, 5) for end in ends] for metric, ends in whole.intervals.items()}
    if not split.mask_history:
        asking, fresh = new_only(split.test)
        new = measured(fitted.new_lists[asking], fresh)
        row["new_items"] = {metric: round(value, 5) for metric, value in new.values.items()} | {"users": len(fresh)}
        row["new_items"]["intervals"] = {
            metric: [round(end, 5) for end in ends] for metric, ends in new.intervals.items()
        }
    if fitted.epoch_seconds is not None:
        row["epoch_s"] = round(fitted.epoch_seconds, 3)
    return row


def _told(split: Split) -> str:
    masked = "history masked" if split.mask_history else "buying again counts as right"
    return (
        f"{split.protocol}: {len(split.test):,} users asked, all {split.items:,} items ranked, {masked}; "
        f"{len(split.final.items):,} interactions to learn from"
    )


def _line(row: dict[str, Any]) -> str:
    low, high = row["intervals"]["ndcg@10"]
    new = f", new items {row['new_items']['ndcg@10']:.4f}" if "new_items" in row else ""
    return f"{row['model']}: ndcg@10 {row['ndcg@10']:.4f} [{low:.4f}, {high:.4f}]{new} in {row['fit_s']:.0f} s"


def _table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, best NDCG@10 first."""
    columns = [("ndcg@10", ".4f"), ("hr@10", ".4f"), ("recall@10", ".4f"), ("mrr", ".4f"), ("coverage@10", ".3f"),
               ("novelty@10", ".2f"), ("popularity_bias@10", ".2f"), ("fit_s", ".1f"), ("epoch_s", ".2f")]  # fmt: skip
    lines = [["model", "seed", "ndcg@10 95 %", *(name for name, _ in columns), "new items ndcg@10"]]
    for row in sorted(rows, key=lambda row: -row["ndcg@10"]):
        low, high = row["intervals"]["ndcg@10"]
        cells = [format(row[name], form) if name in row else "" for name, form in columns]
        new = f"{row['new_items']['ndcg@10']:.4f}" if "new_items" in row else ""
        lines.append([row["model"], str(row["seed"]), f"{low:.4f} to {high:.4f}", *cells, new])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
