"""Runs models of other projects (peers) in an environment of their own, so that their pins cannot affect ours.

`make setup-peers` creates it. A peer's process reads the split once from a folder of arrays, then answers each JSON
line with one, and writes its lists as arrays: the evaluation measures all models with the same code.
"""

import json
import subprocess
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from training.benchmark.interactions import Sequences
from training.benchmark.models import Fitted, Hyperparameters
from training.benchmark.protocols import Split

ENVIRONMENT = Path(".venv-peers")
ROOT = Path(__file__).parents[2]


class PeerError(Exception):
    """Raised where a peer cannot start, or fails; the message holds the end of its output."""


class Peer:
    """One peer as a benchmark model; its process starts with the first fit and ends with `close`."""

    def __init__(self, name: str, *, environment: Path = ENVIRONMENT) -> None:
        self.name = name
        self._python = environment / "bin" / "python"
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        """Suggests settings to try."""
        if self.name == "rectools_sasrec":
            return {
                "dropout": trial.suggest_float("dropout", 0.1, 0.6),
                "rate": trial.suggest_float("rate", 3e-4, 5e-3, log=True),
                "negatives": trial.suggest_categorical("negatives", [64, 256]),
                "length": trial.suggest_categorical("length", [50, 100]),
            }
        if self.name == "lightgbm":
            return {
                "leaves": trial.suggest_int("leaves", 7, 63, log=True),
                "rate": trial.suggest_float("rate", 0.02, 0.2, log=True),
                "trees": trial.suggest_int("trees", 50, 300, log=True),
            }
        settings: Hyperparameters = {
            "factors": trial.suggest_categorical("factors", [32, 64, 128, 256]),
            "regularization": trial.suggest_float("regularization", 1e-3, 10.0, log=True),
            "iterations": trial.suggest_int("iterations", 5, 200, log=True),
        }
        if self.name == "als":
            return settings | {"alpha": trial.suggest_float("alpha", 0.5, 60.0, log=True)}
        return settings | {"rate": trial.suggest_float("rate", 3e-3, 0.3, log=True)}

    def fit(self, split: Split, settings: Hyperparameters, *, final: bool, seed: int, seconds: float) -> Fitted:
        """Fits in the peer's process: see `BenchmarkModel.fit`. Raises PeerError."""
        folder = self._start(split)
        answer = self._ask({"model": self.name, "settings": settings, "final": final, "seed": seed, "seconds": seconds})
        lists, new_lists = (
            np.load(folder / name, allow_pickle=False).astype(np.int64) for name in ("lists.npy", "new_lists.npy")
        )
        return Fitted(lists, new_lists, answer["learnt"], answer["epoch_seconds"])

    def close(self) -> None:
        """Ends the process and deletes its folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._folder = None

    def _start(self, split: Split) -> Path:
        """Starts the process unless it runs, and returns its folder."""
        if self._process is not None and self._folder is not None:
            return Path(self._folder.name)
        if not self._python.exists():
            raise PeerError(
                f"{self.name} runs in {self._python.parents[1]}, which does not exist: run `make setup-peers`"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-peer-")
        folder = Path(self._folder.name)
        write_split(split, folder)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._python.absolute()), "-m", "training.benchmark.peer_worker", str(folder)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return folder

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request to the process and returns its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._folder is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            log_end = Path(self._folder.name, "log").read_text(errors="replace").strip().splitlines()[-12:]
            self.close()  # the next fit starts another
            raise PeerError(f"{self.name} failed in {self._python.parents[1]}:\n" + "\n".join(log_end))
        answer: dict[str, Any] = json.loads(line)
        return answer


def write_split(split: Split, folder: Path) -> None:
    """Writes the split as arrays NAME_FIELD.npy and facts.json, without the targets of the test."""
    parts = {"learn": split.learn, "final": split.final, "test_inputs": split.test.inputs}
    parts |= {"validation_inputs": split.validation.inputs, "validation_targets": split.validation.targets}
    for name, part in parts.items():
        for field in fields(Sequences):
            np.save(folder / f"{name}_{field.name}.npy", getattr(part, field.name))
    np.save(folder / "validation_users.npy", split.validation.users)
    np.save(folder / "test_users.npy", split.test.users)
    facts = {"items": split.items, "mask_history": split.mask_history, "refits": split.refits}
    (folder / "facts.json").write_text(json.dumps(facts))


PEERS = ("als", "bpr", "rectools_sasrec", "lightgbm")
