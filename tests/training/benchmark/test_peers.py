"""Tests that the search continues when a peer fails with some settings, and that its defaults must work."""

import sys
from pathlib import Path

import pytest

from training.benchmark import evaluation
from training.benchmark.evaluation import Request, run
from training.benchmark.peers import Peer, PeerError

WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from training.benchmark.lists import DEPTH
folder = Path(sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    if {dies}:
        sys.exit("NaN encountered in factors")
    cases = len(np.load(folder / ("test_users.npy" if request["final"] else "validation_users.npy")))
    for name in ("lists.npy", "new_lists.npy"):
        np.save(folder / name, np.tile(np.arange(DEPTH) % 4, (cases, 1)))
    print(json.dumps({{"learnt": {{}}, "epoch_seconds": None}}), flush=True)
"""


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that makes a request for the peer bpr, whose process dies where `dies` holds."""

    def make(dies: str) -> Request:
        python = tmp_path / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        (tmp_path / "worker.py").write_text(WORKER.format(dies=dies))
        python.write_text(f'#!/bin/sh\nPYTHONPATH=. exec {sys.executable} {tmp_path / "worker.py"} "$3"\n')
        python.chmod(0o755)
        monkeypatch.setitem(Peer.__init__.__kwdefaults__, "environment", tmp_path / "env")
        monkeypatch.setattr(evaluation, "BASELINES", ())  # they would search for as long
        data = tmp_path / "data.txt"
        data.write_text("\n".join(f"u{user} a b c d" for user in range(40)))
        return Request(data, "leave-one-out", ("bpr",), (1,), tune_seconds=8.0)

    return make


@pytest.mark.slow
def test_settings_with_which_a_peer_fails_count_as_tried(request_of) -> None:
    [peer] = run(request_of("request['settings']"), as_json=True, say=lambda line: None)["rows"]
    assert peer["settings"] == {}
    assert peer["trials"] >= 2


def test_a_peer_that_fails_with_its_defaults_is_an_error_with_its_output(request_of) -> None:
    with pytest.raises(PeerError, match="NaN encountered in factors"):
        run(request_of("True"), as_json=True, say=lambda line: None)
