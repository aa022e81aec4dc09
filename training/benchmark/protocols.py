"""How a model is asked: which interactions it learns from, who asks, and what counts as right.

Both protocols rank all items and sample nothing. Settings and early stopping see only the validation cases; the test
cases are judged once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.benchmark.interactions import DataError, Interactions, Sequences

LEAVE_ONE_OUT, TIME_SPLIT = "leave-one-out", "time-split"


@dataclass(frozen=True, slots=True)
class Cases:
    """Requests and their truth, one row each."""

    inputs: Sequences
    """What the user took before, oldest first; never empty."""
    targets: Sequences
    """What they took then, each item once; never empty."""
    users: NDArray[np.int64]
    """Who asks: the row of the split's `learn` and `final` that is theirs."""

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: NDArray[np.int64]) -> "Cases":
        return Cases(self.inputs.rows(rows), self.targets.rows(rows), self.users[rows])


@dataclass(frozen=True, slots=True)
class Split:
    protocol: str
    items: int
    """Size of the catalogue: every item of the file, also those that only the test part holds."""
    learn: Sequences
    """What models learn from while their settings are chosen on `validation`."""
    validation: Cases
    final: Sequences
    """What the judged model learns from: the same as `learn` for leave-one-out, all before the split for time-split."""
    test: Cases
    mask_history: bool
    """Whether items that the user took before are left out of the lists."""

    @property
    def refits(self) -> bool:
        return self.final is not self.learn


def leave_one_out(data: Interactions) -> Split:
    """Each user's last item is the test, the one before it the validation, the rest the training.

    At test time the validation item is part of the user's input, as is usual, but nothing is trained on it. History
    is masked. Users with fewer than 3 items are only learnt from.
    """
    sequences = data.sequences
    from_end = sequences.from_end()
    enough = np.repeat(sequences.lengths, sequences.lengths) >= 3
    asking = np.flatnonzero(sequences.lengths >= 3)
    if not len(asking):
        raise DataError("leave-one-out needs users with 3 items or more, and there is none")
    learn = sequences.keep((from_end >= 2) | ~enough)

    def cases(place: int) -> Cases:
        inputs, targets = sequences.keep(from_end > place), sequences.keep(from_end == place)
        return Cases(inputs.rows(asking), targets.rows(asking), asking)

    return Split(LEAVE_ONE_OUT, len(data.items), learn, cases(1), learn, cases(0), mask_history=True)


def time_split(data: Interactions, *, split_at: int) -> Split:
    """Everything before `split_at` (ms) is the training; users seen there who come back later are asked at that moment.

    Right is every item that they take from then on, also one they took before (nothing is masked) or that nobody had
    taken yet. Validation is the same question asked as long before the split as the test part is long, or halfway
    through the training part where that is shorter; the judged model then learns from everything before the split.
    """
    if not data.timed:
        raise DataError("time-split needs times: give a CSV or Parquet table, or use --protocol leave-one-out")
    times = data.sequences.times
    first, last = int(times.min()), int(times.max())
    if not first < split_at <= last:
        moments = [str(np.datetime64(moment, "ms")) for moment in (first, last)]
        raise DataError(f"--split-at must be within the data, from {moments[0]} to {moments[1]}")
    earlier = split_at - min(last - split_at + 1, (split_at - first) // 2)
    learn, validation = _cut(data.sequences, earlier, until=split_at)
    final, test = _cut(data.sequences, split_at, until=last + 1)
    for cases, part in ((validation, "validation"), (test, "test")):
        if not len(cases):
            raise DataError(f"no user of the training part comes back in the {part} part: choose another --split-at")
    return Split(TIME_SPLIT, len(data.items), learn, validation, final, test, mask_history=False)


def _cut(sequences: Sequences, moment: int, *, until: int) -> tuple[Sequences, Cases]:
    before, after = (
        sequences.keep(sequences.times < moment),
        _once(sequences.keep((sequences.times >= moment) & (sequences.times < until))),
    )
    asking = np.flatnonzero((before.lengths > 0) & (after.lengths > 0))
    return before, Cases(before.rows(asking), after.rows(asking), asking)


def _once(sequences: Sequences) -> Sequences:
    """Each item of a row once, at its first place."""
    keys = sequences.row_of_entry * (sequences.items.max(initial=0) + 1) + sequences.items
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return sequences.keep(first)


def new_only(cases: Cases) -> tuple[NDArray[np.int64], Cases]:
    """Which cases have targets that the user had not taken before, and those cases with only these targets."""
    span = max(cases.inputs.items.max(initial=0), cases.targets.items.max(initial=0)) + 1
    taken = np.unique(cases.inputs.row_of_entry * span + cases.inputs.items)
    fresh = ~np.isin(cases.targets.row_of_entry * span + cases.targets.items, taken)
    targets = cases.targets.keep(fresh)
    rows = np.flatnonzero(targets.lengths > 0)
    return rows, Cases(cases.inputs.rows(rows), targets.rows(rows), cases.users[rows])
