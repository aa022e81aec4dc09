"""Fitting the sequence model: it learns, it can be killed, and its curve stays what it was."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoints import CheckpointError, load
from training.models.sequence import Encoder, SequenceModel
from training.quality.interactions import Sequences
from training.sequence import Rivals, SequenceConfig, batches, fit_sequence, loss_of, windows_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "sequence_loss.json"
CONFIG = SequenceConfig(width=16, length=8, batch=16, rate=1e-2, average=0.9, epochs=6)
ITEMS = 20
CPU = torch.device("cpu")


def ring(users: int = 90) -> Sequences:
    """Users who walk up a ring of ITEMS items."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 15, users)
    items = np.concatenate([(rng.integers(ITEMS) + np.arange(length)) % ITEMS for length in lengths])
    return Sequences(np.concatenate(([0], np.cumsum(lengths))), items, np.arange(len(items)))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 12))
def test_every_entry_but_a_rows_first_is_learnt_once(lengths: list[int], length: int) -> None:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    learn = Sequences(offsets, np.arange(offsets[-1]), np.arange(offsets[-1]))
    windows = windows_of(learn, length)
    config = replace(CONFIG, length=length, batch=3)
    learnt = (
        [batch.targets for batch in batches(learn, windows, config, np.random.default_rng(1))]
        if len(windows.start)
        else []
    )
    expected = [entry for entry in range(offsets[-1]) if entry not in offsets]
    assert sorted(torch.cat(learnt).tolist() if learnt else []) == expected
    assert ((windows.end - windows.start) <= length).all()


def test_the_encoder_sees_no_later_item_and_no_other_row() -> None:
    torch.manual_seed(0)
    encoder = Encoder(width=8, blocks=2, heads=2, dropout=0.0, length=6).eval()
    embedded = torch.randn(5, 8)
    alone = encoder(embedded[:3], torch.tensor([3]))
    beside = encoder(embedded, torch.tensor([3, 2]))
    torch.testing.assert_close(alone, beside[:3])
    # Causal: moving the last item moves only what comes after it.
    changed = embedded.clone()
    changed[2] = torch.randn(8)
    moved = encoder(changed, torch.tensor([3, 2]))
    torch.testing.assert_close(moved[:2], beside[:2])
    assert not torch.allclose(moved[2], beside[2])


def test_drawn_rivals_estimate_the_loss_over_all_items() -> None:
    """Corrected by their chances; without the correction the estimate would lie far off."""
    learn = ring(40)
    torch.manual_seed(1)
    encoder = Encoder(width=16, blocks=1, heads=1, dropout=0.0, length=8)
    model = SequenceModel(items=1000, encoder=encoder)
    batch = next(batches(learn, windows_of(learn, 8), replace(CONFIG, batch=64), np.random.default_rng(0)))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        whole, drawn, fewer = (
            np.mean([loss_of(model, batch, rivals, temperature=1.0, rng=rng).item() for _ in range(20)])
            for rivals in (Rivals(learn, 1000, 500), Rivals(learn, 1000, 499), Rivals(learn, 1000, 100))
        )
    assert drawn == pytest.approx(whole, abs=0.01)
    assert fewer == pytest.approx(whole, abs=0.05)


def test_a_run_that_goes_on_gives_what_it_would_have_given(tmp_path: Path) -> None:
    whole = fit_sequence(ring(), items=ITEMS, config=CONFIG, judge=None, device=CPU, seed=5)
    path = tmp_path / "run.safetensors"
    fit_sequence(ring(), items=ITEMS, config=replace(CONFIG, epochs=2), judge=None, device=CPU, seed=5, checkpoint=path)
    gone_on = fit_sequence(ring(), items=ITEMS, config=CONFIG, judge=None, device=CPU, seed=5, checkpoint=path)
    assert gone_on.losses == pytest.approx(whole.losses)
    torch.testing.assert_close(gone_on.table, whole.table)
    with pytest.raises(CheckpointError, match="other settings or another seed"):
        fit_sequence(ring(), items=ITEMS, config=CONFIG, judge=None, device=CPU, seed=6, checkpoint=path)


RUN = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, "tests/training")
from test_sequence import CONFIG, ITEMS, ring
from dataclasses import replace
from training.sequence import fit_sequence
fit_sequence(ring(), items=ITEMS, config=replace(CONFIG, epochs=100_000), judge=None, device=torch.device("cpu"),
             seed=5, checkpoint=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_run_leaves_a_checkpoint_that_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(path)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = load(path)
    assert found is not None
    done = found[1]["state"]["epoch"]
    config = replace(CONFIG, epochs=done + 3)
    whole = fit_sequence(ring(), items=ITEMS, config=config, judge=None, device=CPU, seed=5)
    gone_on = fit_sequence(ring(), items=ITEMS, config=config, judge=None, device=CPU, seed=5, checkpoint=path)
    assert gone_on.losses == pytest.approx(whole.losses, rel=1e-4)


def test_early_stopping_keeps_the_best_epoch() -> None:
    values = iter([0.1, 0.3, 0.2, 0.2, 0.2, 0.2])
    config = replace(CONFIG, epochs=30, judge_every=1, patience=2)
    fitted = fit_sequence(ring(), items=ITEMS, config=config, judge=lambda _: next(values), device=CPU, seed=5)
    assert fitted.epochs == 2
    assert fitted.judged == 0.3
    assert len(fitted.losses) == 4


def test_no_epoch_begins_after_its_time() -> None:
    fitted = fit_sequence(ring(), items=ITEMS, config=CONFIG, judge=lambda _: 0.5, device=CPU, seed=5, seconds=0.0)
    assert len(fitted.losses) == 1
    assert fitted.judged == 0.5


def test_the_loss_curve_is_the_golden_one() -> None:
    """Who changes the mathematics renews the file (`python tests/training/test_sequence.py`) and says why."""
    losses = fit_sequence(ring(), items=ITEMS, config=CONFIG, judge=None, device=CPU, seed=5).losses
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3)
    assert losses[-1] < losses[0] - 0.5


if __name__ == "__main__":
    curve = fit_sequence(ring(), items=ITEMS, config=CONFIG, judge=None, device=CPU, seed=5).losses
    GOLDEN.write_text(json.dumps([round(value, 6) for value in curve]) + "\n")
