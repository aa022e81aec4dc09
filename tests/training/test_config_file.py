"""Tests `headrace train --settings FILE`: what it reads, and the errors for files that it cannot read."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infra.cli.commands import cli
from training.config_file import RENAMED, SettingsFileError, read_config
from training.configs import CONFIGS, Config, small, standard


def write_settings(folder: Path, content: Any) -> Path:
    path = folder / "settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_part_of_the_settings_replaces_that_part(tmp_path: Path) -> None:
    path = write_settings(tmp_path, {"retrieval": {"dropout": 0.3, "width": 32}, "ranker": {"hidden": [64, 32]}})
    base = standard()
    expected = replace(
        base,
        retrieval=replace(base.retrieval, dropout=0.3, width=32),
        ranker=replace(base.ranker, hidden=(64, 32)),
    )
    assert read_config(path, base=base) == expected


def test_a_runs_record_gives_the_runs_configuration(tmp_path: Path) -> None:
    run = replace(standard(), seed=11, per_source=50)
    path = write_settings(tmp_path, {"config": asdict(run), "search": [], "seconds": 1.0, "curves": {}, "manifest": {}})
    assert read_config(path, base=small()) == run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ([1], "the file must be an object such as"),
        ({"retrival": {}}, "there is no setting retrival; there are name, seed,"),
        ({"ranker": {"widht": 3}}, "there is no setting ranker.widht; there are embedding, hidden,"),
        ({"ranker": 3}, "ranker must be an object"),
        ({"retrieval": {"width": "64"}}, 'retrieval.width: Input should be a valid integer, not "64"'),
        ({"retrieval": {"epochs": 2.5}}, "retrieval.epochs: Input should be a valid integer, not 2.5"),
        ({"ranker": {"hidden": [64, "a"]}}, "ranker.hidden.1: Input should be a valid integer"),
        ({"retrieval": {"dropout": -0.1}}, "retrieval.dropout must be a number of at least 0 and below 1, not -0.1"),
        ({"retrieval": {"dropout": 5}}, "retrieval.dropout must be a number of at least 0 and below 1, not 5"),
        ({"ranker": {"dropout": 1}}, "ranker.dropout must be a number of at least 0 and below 1, not 1"),
        ('{"retrieval": {"dropout": NaN}}', "retrieval.dropout must be a number of at least 0 and below 1, not NaN"),
        ('{"ranker": {"return_loss": Infinity}}', "ranker.return_loss must be a number of at least 0, not Infinity"),
        ({"retrieval": {"epochs": -1}}, "retrieval.epochs must be a whole number of at least 1, not -1"),
        ({"retrieval": {"width": 0}}, "retrieval.width must be a whole number of at least 1, not 0"),
        ({"retrieval": {"learning_rate": 0}}, "retrieval.learning_rate must be a number above 0, not 0"),
        ({"ranker": {"hidden": []}}, "ranker.hidden must be a list of one or more whole numbers of at least 1, not []"),
        ({"ranker": {"hidden": [64, 0]}}, "ranker.hidden.1 must be a whole number of at least 1, not 0"),
        ({"fraud": {"alert_share": 1}}, "fraud.alert_share must be a number above 0 and below 1, not 1"),
        ({"validation_share": 0}, "validation_share must be a number above 0 and below 1, not 0"),
        ({"seed": -7}, "seed must be a whole number of at least 0, not -7"),
        ({"retrieval": {"dropout": True}}, "retrieval.dropout: Input should be a valid number, not true"),
    ],
)
def test_a_wrong_file_gets_one_line_that_says_what_is_wrong(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(SettingsFileError) as error:
        read_config(write_settings(tmp_path, content), base=standard())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("base", [config() for config in CONFIGS.values()], ids=list(CONFIGS))
def test_every_number_has_a_range_that_contains_our_own(tmp_path: Path, base: Config) -> None:
    assert read_config(write_settings(tmp_path, asdict(base)), base=standard()) == base

    def assert_refused(names: tuple[str, ...], value: Any) -> None:
        content = value
        for name in reversed(names):
            content = {name: content}
        with pytest.raises(SettingsFileError, match=rf"{re.escape('.'.join(names))} must be a"):
            read_config(write_settings(tmp_path, content), base=base)

    for part, value in asdict(base).items():
        for name, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            if not isinstance(inner, str):
                assert_refused((part, name) if name else (part,), [] if isinstance(inner, tuple) else type(inner)(-1))


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["train", "--settings", str(tmp_path / "none.json")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: --settings ")
    assert result.output.strip().endswith("cannot be read: No such file or directory")
    result = CliRunner().invoke(cli, ["train", "--search", "0"])
    assert result.exit_code == 2
    assert "0.0 is not in the range x>0" in result.output


def test_old_names_are_read_as_their_current_names(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    old_settings: dict[str, Any] = {}
    for *parents, name in RENAMED:
        part = old_settings
        for parent in parents:
            part = part.setdefault(parent, {})
        part[name] = 17
    file.write_text(json.dumps(old_settings))
    config = read_config(file, base=standard())
    assert config.gate_visits == 17
    assert (config.retrieval.batch_visits, config.retrieval.max_visits_without_purchase) == (17, 17)
    assert (config.ranker.batch_visits, config.ranker.max_visits, config.ranker.cross_rank) == (17, 17, 17)
