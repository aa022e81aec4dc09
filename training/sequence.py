"""Fitting the sequence model: histories in, a scorer of all items out."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from training import checkpoints
from training.models.sequence import TABLE, Encoder, SequenceModel, features_of
from training.quality.interactions import Sequences
from training.softmax import cross_entropy
from training.tracking import Tracker, health

Judge = Callable[["FittedSequence"], float]
"""What decides when to stop: higher is better."""


@dataclass(frozen=True)
class SequenceConfig:
    width: int = 64
    blocks: int = 2
    heads: int = 2
    length: int = 50
    """Latest items that the encoder reads."""
    dropout: float = 0.4
    temperature: float = 0.07
    """Logits are cosines over this."""
    negatives: int = 2048
    """Evenly drawn items that a batch tells its targets from, and from each other; all, if there are up to twice it."""
    horizon: int = 1
    """A position learns one of the next so many items, drawn anew each time: 1 is the very next."""
    batch: int = 128
    rate: float = 2e-3
    weight_decay: float = 0.0
    average: float = 0.998
    """Share of the old that the running average of the weights keeps at each step; the average is what is judged."""
    epochs: int = 45
    judge_every: int = 3
    patience: int = 3
    """Judgements without a better one before training stops."""


@dataclass
class FittedSequence:
    """The best epoch, on the CPU."""

    encoder: Encoder
    table: Tensor
    """float32 [items, D], unit length."""
    epochs: int = 0
    judged: float = 0.0
    epoch_seconds: list[float] = field(default_factory=list)
    """Wall time of each epoch of training, judging left out."""
    losses: list[float] = field(default_factory=list)

    def vectors(self, inputs: Sequences) -> NDArray[np.float32]:
        """float32 [inputs, D] of unit length; inputs must not be empty rows."""
        inputs = inputs.tail(self.encoder.length)
        self.encoder.eval()
        with torch.no_grad():
            lengths = torch.from_numpy(inputs.lengths)
            hidden = self.encoder(self.table[torch.from_numpy(inputs.items)], lengths)
            vectors: NDArray[np.float32] = F.normalize(hidden[lengths.cumsum(0) - 1], dim=-1).numpy()
        return vectors

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """float32 [inputs, items]: cosines."""
        cosines: NDArray[np.float32] = self.vectors(inputs) @ self.table.numpy().T
        return cosines


@dataclass(frozen=True, slots=True)
class _Windows:
    """Pieces of histories: entries [start, end) are read, the entry after each from `first` on is learnt."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    first: NDArray[np.int64]
    row_end: NDArray[np.int64]


def windows_of(learn: Sequences, length: int) -> _Windows:
    """Histories cut so that every entry but a row's first is learnt once, after half a window where there is one."""
    pieces = []
    stride = max(1, length // 2)
    for start, end in zip(learn.offsets[:-1], learn.offsets[1:], strict=True):
        last = end - 1
        while last > start:
            begin = max(start, last - length)
            first = start if begin == start else last - stride
            pieces.append((begin, last, first, end))
            last = first if begin > start else start
    table = np.array(pieces, dtype=np.int64).reshape(-1, 4)
    return _Windows(*table.T)


@dataclass(frozen=True, slots=True)
class Batch:
    history: Tensor
    lengths: Tensor
    learnt: Tensor
    """bool [T]: which positions have a target."""
    targets: Tensor
    """int64 [learnt]."""


def batches(learn: Sequences, windows: _Windows, config: SequenceConfig, rng: np.random.Generator) -> Iterator[Batch]:
    """The windows in random order, rows of like length together: little padding, and every epoch other company."""
    lengths = windows.end - windows.start
    order = rng.permutation(len(lengths))
    parts = []
    for chunk in np.array_split(order, max(1, math.ceil(len(order) / (16 * config.batch)))):
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        parts += np.array_split(chunk, max(1, math.ceil(len(chunk) / config.batch)))
    rng.shuffle(parts)
    for rows in parts:
        count = lengths[rows]
        places = np.repeat(windows.start[rows] - (np.cumsum(count) - count), count) + np.arange(count.sum())
        learnt = places >= np.repeat(windows.first[rows], count)
        left = (np.repeat(windows.row_end[rows], count) - 1 - places)[learnt]
        ahead = 1 if config.horizon == 1 else 1 + rng.integers(0, np.minimum(left, config.horizon))
        yield Batch(
            torch.from_numpy(learn.items[places]),
            torch.from_numpy(count),
            torch.from_numpy(learnt),
            torch.from_numpy(learn.items[places[learnt] + ahead]),
        )


class Rivals:
    """The items that a batch's targets are told from: its targets and evenly drawn ones, or the whole catalogue.

    An item's logit is lowered by the logarithm of its chance to be among them, which makes the loss an estimate of the
    one over all items (Bengio and Senecal, IEEE Transactions on Neural Networks 2008; mixed negatives as in Yang et
    al., WWW 2020).
    """

    def __init__(self, learn: Sequences, items: int, count: int) -> None:
        self._whole, self._items, self._count = items <= 2 * count, items, count
        share = np.bincount(learn.items, minlength=items) / len(learn.items)
        self._log_missed_once = np.log1p(-np.minimum(share, 0.999))
        self._log_not_drawn = count * math.log1p(-1 / max(items, 2))

    def draw(self, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Items int64 [C], where among them the targets are (int64 [targets]), and what their logits are raised by."""
        if self._whole:
            return torch.arange(self._items), targets, torch.zeros(self._items)
        drawn = np.concatenate((targets.numpy(), rng.integers(0, self._items, self._count)))
        items, places = np.unique(drawn, return_inverse=True)
        missed = self._log_not_drawn + len(targets) * self._log_missed_once[items]
        shift = -np.log(-np.expm1(missed))
        return torch.from_numpy(items), torch.from_numpy(places[: len(targets)]), torch.from_numpy(shift).float()


def loss_of(model: nn.Module, batch: Batch, rivals: Rivals, *, temperature: float, rng: np.random.Generator) -> Tensor:
    """Cross entropy of each target among its rivals; logits are cosines over the temperature."""
    items, places, shift = rivals.draw(batch.targets, rng)
    device = next(model.parameters()).device
    features = features_of(batch.history, batch.lengths, items).to(device)
    hidden, vectors = model(features, batch.lengths.to(device))
    hidden = F.normalize(hidden[batch.learnt.to(device)], dim=-1) / temperature
    return cross_entropy(hidden, F.normalize(vectors, dim=-1), places.to(device), shift.to(device))


def fit_sequence(
    learn: Sequences,
    *,
    items: int,
    config: SequenceConfig,
    judge: Judge | None,
    device: torch.device,
    seed: int,
    seconds: float = math.inf,
    label: str = "sequence",
    tracker: Tracker | None = None,
    checkpoint: Path | None = None,
) -> FittedSequence:
    """Train until the judge's value stops growing and keep the best epoch; without a judge, all `config.epochs`.

    No epoch begins when those before took `seconds` together.

    Every epoch draws from its own seed, so a run that goes on from `checkpoint` (written after each epoch, read at the
    start) gives what it would have given undisturbed. Raises ValueError when no history has two items.
    """
    windows = windows_of(learn, config.length)
    if not len(windows.start):
        raise ValueError("no history has two items: there is nothing to learn an order from")
    torch.manual_seed(seed)
    encoder = Encoder(
        width=config.width, blocks=config.blocks, heads=config.heads, dropout=config.dropout, length=config.length
    )
    model = SequenceModel(items=items, encoder=encoder).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=config.weight_decay, fused=True)
    state = _State.resume(model, average, optimizer, checkpoint, config=config, seed=seed)
    rivals = Rivals(learn, items, config.negatives)
    progress = tqdm(range(state.epoch, config.epochs), desc=label, unit="epoch", leave=False)
    for epoch in progress:
        if state.waited >= config.patience or sum(state.seconds) > seconds:
            break
        rng = np.random.default_rng((seed, epoch))
        torch.manual_seed(int(rng.integers(2**62)))
        started = time.perf_counter()
        model.train()
        losses = []
        for batch in batches(learn, windows, config, rng):
            # bf16 where the GPU has it; at these widths a CPU loses more in conversions than it gains.
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(model, batch, rivals, temperature=config.temperature, rng=rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            losses.append(loss.item())
        state.seconds.append(time.perf_counter() - started)
        state.losses.append(float(np.mean(losses)))
        facts = {"loss": state.losses[-1], "epoch_seconds": state.seconds[-1]} | health(model)
        state.epoch = epoch + 1
        last = state.epoch == config.epochs or sum(state.seconds) > seconds
        if judge is None:
            state.keep(average.module)
        elif last or state.epoch % config.judge_every == 0:
            facts["judged"] = state.judge(average.module, judge(_snapshot(cast(SequenceModel, average.module))))
        progress.set_postfix(loss=f"{facts['loss']:.3f}", judged=f"{state.judged:.4f}")
        if tracker:
            tracker.write(facts, step=epoch)
        if checkpoint:
            state.save(checkpoint, model, average, optimizer, config=config, seed=seed)
    return state.fitted(model)


def _snapshot(model: SequenceModel) -> FittedSequence:
    encoder = model.encoder
    table = model.embeddings.embeddings[TABLE].weight.detach().float().cpu()
    if next(encoder.parameters()).is_cuda:
        encoder = copy.deepcopy(encoder).cpu()
    return FittedSequence(encoder, F.normalize(table, dim=-1))


@dataclass
class _State:
    """How far a run is, and its best weights."""

    epoch: int = 0
    judged: float = -math.inf
    best_epoch: int = 0
    waited: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, model: nn.Module) -> None:
        self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        self.best_epoch = self.epoch

    def judge(self, model: nn.Module, value: float) -> float:
        if value > self.judged:
            self.judged, self.waited = value, 0
            self.keep(model)
        else:
            self.waited += 1
        return value

    def fitted(self, model: SequenceModel) -> FittedSequence:
        model.load_state_dict(self.best)
        fitted = _snapshot(model.cpu())
        fitted.epochs, fitted.judged = self.best_epoch, max(self.judged, 0.0)
        fitted.epoch_seconds, fitted.losses = self.seconds, self.losses
        return fitted

    def save(
        self,
        path: Path,
        model: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        config: SequenceConfig,
        seed: int,
    ) -> None:
        parts = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": checkpoints.optimizer_tensors(model, optimizer),
            "best": self.best,
        }
        facts = {name: value for name, value in asdict(self).items() if name != "best"}
        facts["judged"] = self.judged if math.isfinite(self.judged) else None
        checkpoints.save(
            path,
            {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()},
            {"state": facts, "run": _run(config, seed)},
        )

    @classmethod
    def resume(
        cls,
        model: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        path: Path | None,
        *,
        config: SequenceConfig,
        seed: int,
    ) -> "_State":
        found = checkpoints.load(path) if path else None
        if found is None:
            return cls()
        tensors, facts = found
        if facts["run"] != _run(config, seed):
            raise checkpoints.CheckpointError(
                f"{path} was written with other settings or another seed: remove it, or train with {facts['run']}"
            )

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}

        model.load_state_dict(part("model"))
        average.load_state_dict(part("average"))
        checkpoints.restore_optimizer(model, optimizer, part("optimizer"))
        known = facts["state"] | {"best": part("best")}
        known["judged"] = -math.inf if known["judged"] is None else known["judged"]
        return cls(**known)


def _run(config: SequenceConfig, seed: int) -> dict[str, float]:
    """What a checkpoint must agree on; a run may be given more epochs."""
    return {name: value for name, value in asdict(config).items() if name != "epochs"} | {"seed": seed}
