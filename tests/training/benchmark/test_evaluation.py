"""Tests the benchmark from the command line, on a simulated shop whose next item is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from infra.cli.commands import cli


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "quality", *arguments])


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Writes users who walk up a ring of 30 items from any start: the next item is certain, popularity is useless."""
    rng = np.random.default_rng(3)
    lines = []
    for user in range(240):
        start, length = int(rng.integers(30)), int(rng.integers(4, 9))
        lines.append(" ".join([f"u{user}", *(f"i{(start + step) % 30}" for step in range(length))]))
    path = tmp_path / "ring.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_the_sequence_model_finds_what_the_baselines_cannot(chain: Path) -> None:
    options = ("--data", str(chain), "--protocol", "leave-one-out", "--max-length", "20", "--seed", "3", "--json")
    result = bench(*options)
    assert result.exit_code == 0, result.output
    rows = {row["model"]: row for row in json.loads(result.stdout.strip().splitlines()[-1])["rows"]}
    assert set(rows) == {"popularity", "item_knn", "sequence"}
    assert rows["sequence"]["ndcg@10"] > 0.9
    assert rows["popularity"]["ndcg@10"] < 0.5
    assert {"hr@10", "mrr", "coverage@10", "novelty@10", "popularity_bias@10", "fit_s", "epoch_s"} <= set(
        rows["sequence"]
    )
    low, high = rows["sequence"]["intervals"]["ndcg@10"]
    assert low <= rows["sequence"]["ndcg@10"] <= high


def test_without_json_there_is_a_table(chain: Path) -> None:
    result = bench("--data", str(chain), "--model", "popularity")
    assert result.exit_code == 0, result.output
    assert "240 test users, all 30 items ranked" in result.output
    assert "item_knn" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "oracle"), "the models are popularity, item_knn, sequence"),
        (("--protocol", "time-split"), "needs --split-at"),
        (("--protocol", "time-split", "--split-at", "soon"), "write a time such as"),
        (("--protocol", "time-split", "--split-at", "2011-11-09"), "needs times"),
        (("--split-at", "2011-11-09"), "belongs to --protocol time-split"),
    ],
)
def test_a_wrong_request_gets_one_clear_line(chain: Path, arguments: tuple[str, ...], message: str) -> None:
    result = bench("--data", str(chain), *arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert message in result.output


def test_peers_are_refused_under_torchrun(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process would start its own."""
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    result = bench("--data", str(chain), "--model", "als")
    assert result.exit_code == 1
    assert "--model als: peers run in one process, so leave out torchrun" in result.output
