"""`headrace bench quality`: tunes any models on any data by validation cases, and evaluates them once on test cases.

All models get the same time for tuning and are measured by the same code. The result is a JSON line or a table.
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

from infra.progress import progress_bar
from training.benchmark.interactions import read_interactions
from training.benchmark.metrics import Measurement, mean_ndcg, measure
from training.benchmark.models import OUR_MODELS, BenchmarkModel, Fitted, Hyperparameters
from training.benchmark.peers import PEERS, Peer, PeerError
from training.benchmark.protocols import LEAVE_ONE_OUT, TIME_SPLIT, Split, leave_one_out, new_only, time_split
from training.core.sharding import choose_device, is_leader, process_group, total

optuna.logging.set_verbosity(optuna.logging.WARNING)

KS = (10, 20)
BASELINES = ("popularity", "item_knn")
"""Always run beside the requested models."""


class QualityError(Exception):
    """Raised for a request that the benchmark cannot run; the message says what to change."""


@dataclass(frozen=True)
class Request:
    """One run of the benchmark, as the command line gives it."""

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
    """Time that each model may spend on trying settings after its defaults; 0 tries none."""
    fit_seconds: float = 1200.0
    """Time after which a single fit of a model that learns by epochs stops."""


def run(request: Request, *, as_json: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs every model, reports, and returns the content of the JSON line.

    Under torchrun every process calls it: the sequence model is fitted together, and the first process prints.
    Raises QualityError, DataError or PeerError with what to change.
    """
    with process_group(choose_device()):
        return _run(request, as_json=as_json, say=say if is_leader() else lambda _: None)


def _run(request: Request, *, as_json: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs within the process group."""
    models = _benchmark_models(request)
    try:
        split = _split(request)
        if not as_json:
            say(_describe_split(split))
        rows = []
        for model in progress_bar(models, desc="models", unit="model", disable=not is_leader()):
            rows += _evaluate(model, split, request)
            if not as_json:
                say(_summary_line(rows[-1]))
    finally:
        for model in models:
            if isinstance(model, Peer):
                model.close()
    result = {
        "data": request.data.name, "protocol": request.protocol, "users": len(split.test), "items": split.items,
        "mask_history": split.mask_history, "rows": rows,
    }  # fmt: skip
    say(json.dumps(result) if as_json else _table(rows))
    return result


def _benchmark_models(request: Request) -> list[BenchmarkModel]:
    """Returns the baselines and the requested models, each once."""
    available = (*OUR_MODELS, *PEERS)
    unknown = [name for name in request.models if name not in available]
    if unknown:
        raise QualityError(f"--model {','.join(unknown)}: the models are {', '.join(available)}")
    names = dict.fromkeys((*BASELINES, *request.models))
    if dist.get_world_size() > 1 and (peer_names := [name for name in names if name in PEERS]):
        raise QualityError(f"--model {','.join(peer_names)}: peers run in one process, so leave out torchrun")
    peers = {name: Peer(name) for name in names if name in PEERS}
    return [peers[name] if name in peers else OUR_MODELS[name]() for name in names]


def _split(request: Request) -> Split:
    """Reads the data and splits it by the protocol."""
    data = read_interactions(request.data, mapping=request.mapping, positive=request.positive, header=request.header)
    if request.protocol == LEAVE_ONE_OUT:
        if request.split_at:
            raise QualityError("--split-at belongs to --protocol time-split")
        return leave_one_out(data)
    if request.protocol != TIME_SPLIT:
        raise QualityError(f"--protocol {request.protocol}: the protocols are {LEAVE_ONE_OUT} and {TIME_SPLIT}")
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


def _evaluate(model: BenchmarkModel, split: Split, request: Request) -> list[dict[str, Any]]:
    """Chooses settings with the first seed, then returns one row of results for each seed."""
    fixed: Hyperparameters = {} if request.max_length is None else {"length": request.max_length}
    chosen, trials = _choose_settings(model, split, request, fixed)
    rows = []
    for seed in request.seeds:
        started = time.perf_counter()
        fitted = model.fit(split, chosen, final=True, seed=seed, seconds=request.fit_seconds)
        rows.append(
            _row(model.name, split, fitted, seed=seed)
            | {"fit_s": round(time.perf_counter() - started, 2), "trials": trials, "settings": chosen | fitted.learnt}
        )
    return rows


def _choose_settings(
    model: BenchmarkModel, split: Split, request: Request, fixed: Hyperparameters
) -> tuple[Hyperparameters, int]:
    """Returns the settings with the best validation NDCG@10 found in the time, and how many were tried.

    fixed: settings that are not searched. Settings with which a peer fails (its factors diverge, say) count as tried.
    """
    if not request.tune_seconds and not split.refits:
        return fixed, 0
    best: tuple[float, Hyperparameters] = (-1.0, fixed)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=request.seeds[0], n_startup_trials=5)
    )
    started, trials = time.perf_counter(), 0
    while True:
        trial = study.ask() if trials else None
        settings = fixed if trial is None else model.suggest(trial) | fixed
        try:
            fitted = model.fit(split, settings, final=False, seed=request.seeds[0], seconds=request.fit_seconds)
        except PeerError:
            if trial is None:  # with its defaults it must not fail
                raise
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            value = mean_ndcg(fitted.lists, split.validation, items=split.items)
            if trial is not None:
                study.tell(trial, value)
            if value > best[0]:
                best = (value, settings | fitted.learnt)
        trials += 1
        if total(time.perf_counter() - started) / dist.get_world_size() > request.tune_seconds:
            return best[1], trials


def _row(name: str, split: Split, fitted: Fitted, *, seed: int) -> dict[str, Any]:
    """Returns the results of one fit, as the JSON line holds them."""

    def measured(lists: np.ndarray, cases: Any) -> Measurement:
        return measure(lists, cases, learnt=split.final, items=split.items, ks=KS, seed=seed)

    whole = measured(fitted.lists, split.test)
    row: dict[str, Any] = {"model": name, "seed": seed}
    row |= {metric: round(value, 5) for metric, value in whole.values.items()}
    row["intervals"] = {metric: [round(end, 5) for end in ends] for metric, ends in whole.intervals.items()}
    if not split.mask_history:
        case_rows, new_cases = new_only(split.test)
        new = measured(fitted.new_lists[case_rows], new_cases)
        row["new_items"] = {metric: round(value, 5) for metric, value in new.values.items()} | {"users": len(new_cases)}
        row["new_items"]["intervals"] = {
            metric: [round(end, 5) for end in ends] for metric, ends in new.intervals.items()
        }
    if fitted.epoch_seconds is not None:
        row["epoch_s"] = round(fitted.epoch_seconds, 3)
    return row


def _describe_split(split: Split) -> str:
    """Returns what is evaluated, in one line."""
    masking = "history masked" if split.mask_history else "re-purchase counts"
    return (
        f"{split.protocol}: {len(split.test):,} test users, all {split.items:,} items ranked, {masking}; "
        f"{len(split.final.items):,} interactions to learn from"
    )


def _summary_line(row: dict[str, Any]) -> str:
    """Returns the main result of a row."""
    low, high = row["intervals"]["ndcg@10"]
    new = f", new items {row['new_items']['ndcg@10']:.4f}" if "new_items" in row else ""
    return f"{row['model']}: ndcg@10 {row['ndcg@10']:.4f} [{low:.4f}, {high:.4f}]{new} in {row['fit_s']:.0f} s"


def _table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table, best NDCG@10 first."""
    columns = [("ndcg@10", ".4f"), ("hr@10", ".4f"), ("recall@10", ".4f"), ("mrr", ".4f"), ("coverage@10", ".3f"),
               ("novelty@10", ".2f"), ("popularity_bias@10", ".2f"), ("fit_s", ".1f"), ("epoch_s", ".2f")]  # fmt: skip
    lines = [["model", "seed", "ndcg@10 95 %", *(name for name, _ in columns), "new items ndcg@10"]]
    for row in sorted(rows, key=lambda row: -row["ndcg@10"]):
        low, high = row["intervals"]["ndcg@10"]
        cells = [format(row[name], spec) if name in row else "" for name, spec in columns]
        new = f"{row['new_items']['ndcg@10']:.4f}" if "new_items" in row else ""
        lines.append([row["model"], str(row["seed"]), f"{low:.4f} to {high:.4f}", *cells, new])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
