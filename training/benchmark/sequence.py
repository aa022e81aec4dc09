"""Fitting the sequence model: histories in, a scorer of all items out."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.benchmark.interactions import Sequences
from training.benchmark.softmax import cross_entropy
from training.core.sharding import loss_scale, process_group, replicate, share, total
from training.core.trainer import RunPaths, TrainingHistory, fit
from training.models.sequence import TABLE, Encoder, SequenceModel, features_of

Validate = Callable[["FittedSequence"], float]
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
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    average: float = 0.998
    """Share of the old that the running average of the weights keeps at each step; the average is what is judged."""
    epochs: int = 45
    validate_every: int = 3
    patience: int = 3
    """Judgements without a better one before training stops."""


@dataclass
class FittedSequence:
    """The best epoch, on the CPU."""

    encoder: Encoder
    table: Tensor
    """float32 [items, D], unit length."""
    curve: TrainingHistory

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


class NegativeSampler:
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


def loss_of(
    model: nn.Module, batch: Batch, rivals: NegativeSampler, *, temperature: float, rng: np.random.Generator
) -> Tensor:
    """Cross entropy of each target among its rivals; logits are cosines over the temperature.

    Of this process's rows of the batch, and so scaled that the processes' mean is the whole batch's.
    """
    items, places, shift = rivals.draw(batch.targets, rng)
    mine = torch.zeros(len(batch.lengths), dtype=torch.bool)
    mine[share(torch.arange(len(mine)))] = True
    part = 1.0
    if not mine.any():  # without a row of its own a process still takes part in the exchange of gradients
        mine[0], part = True, 0.0
    entries = mine.repeat_interleave(batch.lengths)
    learnt, lengths = batch.learnt[entries], batch.lengths[mine]
    places = places[entries[batch.learnt]]
    device = next(model.parameters()).device
    features = features_of(batch.history[entries], lengths, items).to(device)
    hidden, vectors = model(features, lengths.to(device))
    hidden = F.normalize(hidden[learnt.to(device)], dim=-1) / temperature
    loss = cross_entropy(hidden, F.normalize(vectors, dim=-1), places.to(device), shift.to(device))
    return loss * (part * len(places) * loss_scale(len(batch.targets)))


def fit_sequence(
    learn: Sequences,
    *,
    items: int,
    config: SequenceConfig,
    validate: Validate | None,
    device: torch.device,
    seed: int,
    seconds: float = math.inf,
    label: str = "sequence",
    watch: RunPaths | None = None,
) -> FittedSequence:
    """Train until the judge's value stops growing and keep the best epoch; without a judge, all `config.epochs`.

    No epoch begins when those before took `seconds` together. Under torchrun every process calls it, and gets the same.
    Raises ValueError when no history has two items.
    """
    windows = windows_of(learn, config.length)
    if not len(windows.start):
        raise ValueError("no history has two items: there is nothing to learn an order from")
    torch.manual_seed(seed)
    encoder = Encoder(
        width=config.width, blocks=config.blocks, heads=config.heads, dropout=config.dropout, length=config.length
    )
    rivals = NegativeSampler(learn, items, config.negatives)
    with process_group(device):
        model = replicate(SequenceModel(items=items, encoder=encoder), device=device)
        average = AveragedModel(model.module, multi_avg_fn=get_ema_multi_avg_fn(config.average))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

        def epoch(generator: torch.Generator) -> float:
            rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            losses = []
            for batch in batches(learn, windows, config, rng):
                # bf16 where the GPU has it; at these widths a CPU loses more in conversions than it gains.
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = loss_of(model, batch, rivals, temperature=config.temperature, rng=rng)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                average.update_parameters(model.module)
                losses.append(loss.item())
            return float(np.mean(losses))

        def worse() -> float:
            assert validate is not None
            return (
                -total(validate(_snapshot(cast(SequenceModel, average.module), TrainingHistory())))
                / dist.get_world_size()
            )

        curve = fit(
            model, optimizer, epoch=epoch, validate=worse if validate else None, epochs=config.epochs,
            patience=config.patience * config.validate_every, seed=seed, label=label, paths=watch,
            average=average, validate_every=config.validate_every, seconds=seconds,
        )  # fmt: skip
        return _snapshot(model.module, curve)


def _snapshot(model: SequenceModel, curve: TrainingHistory) -> FittedSequence:
    """The model as it stands now, on the CPU."""
    table = model.embeddings.embeddings[TABLE].weight.detach().float().cpu()
    return FittedSequence(copy.deepcopy(model.encoder).cpu(), F.normalize(table, dim=-1), curve)
