"""Splits interactions by a protocol: what models learn from, the users of each request, and the relevant items.

Both protocols rank all items and sample nothing. Settings and early stopping see only the validation cases; the test
cases are evaluated once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.benchmark.interactions import DataError, Interactions, Sequences

LEAVE_ONE_OUT, TIME_SPLIT = "leave-one-out", "time-split"


@dataclass(frozen=True, slots=True)
class Cases:
    """Holds requests with their relevant items, one row each."""

    inputs: Sequences
    """What the user took before, oldest first; never empty."""
    targets: Sequences
    """What they took next, each item once: the relevant items; never empty."""
    users: NDArray[np.int64]
    """The user's row in the split's `learn` and `final`."""

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: NDArray[np.int64]) -> "Cases":
        """Returns these rows."""
        return Cases(self.inputs.rows(rows), self.targets.rows(rows), self.users[rows])


@dataclass(frozen=True, slots=True)
class Split:
    """Holds the interactions as one protocol splits them."""

    protocol: str
    items: int
    """Size of the catalogue: every item of the file, including those that are only in the test part."""
    learn: Sequences
    """Training part while settings are chosen on `validation`."""
    validation: Cases
    final: Sequences
    """Training part of the final model: `learn` for leave-one-out, everything before the split for time-split."""
    test: Cases
    mask_history: bool
    """Whether items that the user took before are left out of the lists."""

    @property
    def refits(self) -> bool:
        """Returns whether the final model learns from more than `learn`."""
        return self.final is not self.learn


def leave_one_out(data: Interactions) -> Split:
    """Splits by user: the last item is the test, the one before it the validation, the rest the training part.

    At test time the validation item is part of the user's input, as is usual, but nothing is trained on it. History is
    masked. Users with fewer than 3 items are only learnt from.
    """
    sequences = data.sequences
    from_end = sequences.distance_from_end()
    enough = np.repeat(sequences.lengths, sequences.lengths) >= 3
    users = np.flatnonzero(sequences.lengths >= 3)
    if not len(users):
        raise DataError("leave-one-out needs users with 3 items or more, and there are none")
    learn = sequences.keep((from_end >= 2) | ~enough)

    def cases(distance: int) -> Cases:
        inputs, targets = sequences.keep(from_end > distance), sequences.keep(from_end == distance)
        return Cases(inputs.rows(users), targets.rows(users), users)

    return Split(LEAVE_ONE_OUT, len(data.items), learn, cases(1), learn, cases(0), mask_history=True)


def time_split(data: Interactions, *, split_at: int) -> Split:
    """Splits by time: everything before `split_at` (ms) is the training part; its users who return are the test cases.

    Relevant is every item that they take from then on, including items they took before (nothing is masked) and items
    that nobody had taken yet. Validation is the same at an earlier moment: as long before the split as the test part is
    long, or halfway through the training part where that is shorter. The final model then learns from everything before
    the split.
    """
    if not data.timed:
        raise DataError("time-split needs times: give a CSV or Parquet table, or use --protocol leave-one-out")
    times = data.sequences.times
    first, last = int(times.min()), int(times.max())
    if not first < split_at <= last:
        moments = [str(np.datetime64(moment, "ms")) for moment in (first, last)]
        raise DataError(f"--split-at must be within the data, from {moments[0]} to {moments[1]}")
    earlier = split_at - min(last - split_at + 1, (split_at - first) // 2)
    learn, validation = _cases_at(data.sequences, earlier, until=split_at)
    final, test = _cases_at(data.sequences, split_at, until=last + 1)
    for cases, part in ((validation, "validation"), (test, "test")):
        if not len(cases):
            raise DataError(f"no user of the training part comes back in the {part} part: choose another --split-at")
    return Split(TIME_SPLIT, len(data.items), learn, validation, final, test, mask_history=False)


def _cases_at(sequences: Sequences, moment: int, *, until: int) -> tuple[Sequences, Cases]:
    """Returns everything before the moment (ms), and a case for each of its users who takes something until `until`."""
    before, after = (
        sequences.keep(sequences.times < moment),
        _first_occurrences(sequences.keep((sequences.times >= moment) & (sequences.times < until))),
    )
    users = np.flatnonzero((before.lengths > 0) & (after.lengths > 0))
    return before, Cases(before.rows(users), after.rows(users), users)


def _first_occurrences(sequences: Sequences) -> Sequences:
    """Returns each item of a row once, at its first position."""
    keys = sequences.row_of_entry * (sequences.items.max(initial=0) + 1) + sequences.items
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return sequences.keep(first)


def new_only(cases: Cases) -> tuple[NDArray[np.int64], Cases]:
    """Returns the rows of the cases with targets new to the user, and those cases with only these targets."""
    span = max(cases.inputs.items.max(initial=0), cases.targets.items.max(initial=0)) + 1
    taken = np.unique(cases.inputs.row_of_entry * span + cases.inputs.items)
    is_new = ~np.isin(cases.targets.row_of_entry * span + cases.targets.items, taken)
    targets = cases.targets.keep(is_new)
    rows = np.flatnonzero(targets.lengths > 0)
    return rows, Cases(cases.inputs.rows(rows), targets.rows(rows), cases.users[rows])
