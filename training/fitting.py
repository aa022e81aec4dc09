"""The loop that a recommender's model is fitted by: epochs until validation stops getting better, the best one kept.

Knows nothing of a model's inputs: an epoch and its judgement come in as functions. Each epoch draws from a seed of its
own, so a run that was killed goes on from its checkpoint to what it would have been undisturbed. With several
processes (`torchrun`), each keeps the checkpoint of its own tables.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from tqdm import tqdm

from training import checkpoints
from training.shard import is_leader, local_tensors, total
from training.tracking import Tracker, health

logger = logging.getLogger(__name__)

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Watch:
    """Where the fits of one run leave their traces."""

    unfinished: Path
    """Folder of checkpoints; those of another configuration, seed or data are not gone on from."""
    curves: Path
    """Folder of TensorBoard files, one folder a fit."""
    facts: Facts
    """What a checkpoint must agree on: the run's configuration and data, as JSON."""


@dataclass
class Curve:
    """How a fit went."""

    losses: list[float] = field(default_factory=list)
    """Mean training loss of each epoch."""
    values: list[float] = field(default_factory=list)
    """The judgement after each epoch; empty without a judge."""
    best_epoch: int = 0
    """Epochs that the kept weights have seen."""

    @property
    def best(self) -> float:
        """The judgement of the kept weights; infinite before the first one."""
        return self.values[self.best_epoch - 1] if self.values and self.best_epoch else math.inf


def fit(
    model: DistributedModelParallel,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: Callable[[torch.Generator], float],
    judge: Callable[[], float] | None,
    epochs: int,
    patience: int,
    seed: int,
    label: str,
    watch: Watch | None,
) -> Curve:
    """Train the model in place and leave the weights of the best epoch in it.

    epoch: trains one epoch, drawing from the generator, and returns its mean loss (of this process's share, scaled as
    shard.loss_scale says); judge: the validation value, lower is better, the same in every process; without it all
    epochs are run and the last one is kept.
    """
    live = local_tensors(model)
    curve, best = Curve(), dict[str, Tensor]()
    path = _path(watch, label)
    if path and (found := _resume(path, model, optimizer, live, facts=_run(watch, label, seed))):
        curve, best = found
    tracker = Tracker(watch.curves / label.replace("/", "-of-")) if watch and is_leader() else None
    for number in range(len(curve.losses)):  # a run that goes on draws its whole curve
        _draw(tracker, curve, number, {})
    progress = tqdm(range(len(curve.losses), epochs), desc=label, unit="epoch", leave=False, disable=not is_leader())
    for number in progress:
        if judge and number - curve.best_epoch >= patience and curve.best_epoch:
            break
        # Dropout differs between the processes, what is drawn together does not.
        torch.manual_seed((seed * 1009 + number) * 4099 + dist.get_rank())
        model.train()
        loss = epoch(torch.Generator().manual_seed(seed * 1009 + number))
        curve.losses.append(total(loss) / dist.get_world_size())
        facts = health(model) if tracker else {}
        model.eval()
        if judge:
            with torch.no_grad():
                curve.values.append(judge())
        if not judge or not curve.best_epoch or curve.values[-1] < curve.best:
            curve.best_epoch = number + 1
            best = {name: value.cpu().clone() for name, value in live.items()}
        progress.set_postfix(loss=f"{curve.losses[-1]:.4f}", validation=f"{(curve.values or [math.nan])[-1]:.4f}")
        _draw(tracker, curve, number, facts)
        if path:
            _save(path, model, optimizer, live, best, curve, facts=_run(watch, label, seed))
    for name, value in best.items():
        live[name].copy_(value)
    model.eval()
    if tracker:
        tracker.close()
    return curve


def _draw(tracker: Tracker | None, curve: Curve, number: int, facts: dict[str, float]) -> None:
    if tracker:
        known = {"validation": curve.values[number]} if curve.values else {}
        tracker.write({"loss": curve.losses[number]} | known | facts, step=number)


def _path(watch: Watch | None, label: str) -> Path | None:
    return watch.unfinished / f"{label.replace('/', '-of-')}.{dist.get_rank()}.safetensors" if watch else None


def _run(watch: Watch | None, label: str, seed: int) -> Facts:
    return {**(watch.facts if watch else {}), "label": label, "seed": seed, "processes": dist.get_world_size()}


def _save(
    path: Path,
    model: DistributedModelParallel,
    optimizer: torch.optim.Optimizer,
    live: dict[str, Tensor],
    best: dict[str, Tensor],
    curve: Curve,
    *,
    facts: Facts,
) -> None:
    parts = {"live": live, "best": best, "optimizer": checkpoints.optimizer_tensors(model, optimizer)}
    dist.barrier()  # no process is an epoch ahead of another when it writes
    checkpoints.save(
        path,
        {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()},
        {"run": facts, "curve": asdict(curve)},
    )


def _resume(
    path: Path,
    model: DistributedModelParallel,
    optimizer: torch.optim.Optimizer,
    live: dict[str, Tensor],
    *,
    facts: Facts,
) -> tuple[Curve, dict[str, Tensor]] | None:
    """Put the model where its checkpoint left it, if every process has one of this run and of the same epoch."""
    found = checkpoints.load(path)
    tensors, known = found or ({}, {})
    mine = len(known["curve"]["losses"]) if known.get("run") == facts else 0
    together = total(mine)
    agreed = mine > 0 and together == mine * dist.get_world_size()
    if total(agreed) < dist.get_world_size():
        if found:
            logger.info("%s is of another run, or of another epoch than the other processes': starting anew", path)
        return None

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}

    for name, value in part("live").items():
        live[name].copy_(value)
    checkpoints.restore_optimizer(model, optimizer, part("optimizer"))
    logger.info("going on after epoch %d of %s", mine, facts["label"])
    return Curve(**known["curve"]), part("best")
