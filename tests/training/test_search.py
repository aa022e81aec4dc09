"""Tests the search for settings: it finds better ones, else keeps the start, and resumes after a kill."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
import torch

from training.config_file import read_config
from training.configs import RankerConfig, RetrievalConfig, standard
from training.core.sharding import process_group
from training.search import Search, suggest_ranker, suggest_retrieval

START = RetrievalConfig(dropout=0.2)


def search(
    folder: Path, value: Callable[[RetrievalConfig], float], *, facts: str = "shop"
) -> tuple[Search, RetrievalConfig]:
    """Runs a search of 0.5 s in which each try takes 0.02 s, so that there are about 20."""

    def slow(tried: RetrievalConfig) -> float:
        time.sleep(0.02)
        return value(tried)

    finished = Search(0.5, seed=3, journal=folder / "search.jsonl", say=lambda line: None)
    with process_group(torch.device("cpu")):
        best = finished.best(
            START, suggest=suggest_retrieval, value=slow, label="two-tower", metric="recall", identity={"of": facts}
        )
    return finished, best


def test_better_settings_are_found(tmp_path: Path) -> None:
    finished, best = search(tmp_path, lambda tried: -abs(tried.dropout - 0.4))
    assert abs(best.dropout - 0.4) < abs(START.dropout - 0.4)
    values = [result["value"] for result in finished.tries]
    assert values[0] == pytest.approx(-0.2), "the start is tried first"
    assert max(values) == -abs(best.dropout - 0.4)
    assert 2 < len(values) < 60


def test_the_start_is_kept_where_nothing_is_better(tmp_path: Path) -> None:
    finished, best = search(tmp_path, lambda tried: float(tried == START))
    assert best == START
    assert len(finished.tries) > 2


def test_a_killed_search_resumes(tmp_path: Path) -> None:
    fitted: list[RetrievalConfig] = []

    def dies_at_its_fifth(tried: RetrievalConfig) -> float:
        fitted.append(tried)
        if len(fitted) == 5:
            raise KeyboardInterrupt
        return tried.dropout

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, dies_at_its_fifth)
    finished, _ = search(tmp_path, dies_at_its_fifth)
    undisturbed, _ = search(tmp_path / "other", lambda tried: tried.dropout)
    assert fitted[5] == fitted[4], "it resumes with the try that was lost"
    assert [result["settings"] for result in finished.tries[:4]] == [asdict(config) for config in fitted[:4]]
    both = list(zip(finished.tries, undisturbed.tries, strict=False))
    assert len(both) > 5
    assert all(resumed["settings"] == expected["settings"] for resumed, expected in both)


def test_tries_of_another_run_are_not_resumed(tmp_path: Path) -> None:
    search(tmp_path, lambda tried: 0.9)
    finished, _ = search(tmp_path, lambda tried: 0.1, facts="another shop")
    assert {result["value"] for result in finished.tries} == {0.1}


def test_settings_without_a_range_stay() -> None:
    trial = optuna.create_study().ask()
    retrieval = suggest_retrieval(trial, replace(START, refit_epochs=9, patience=4))
    assert (retrieval.refit_epochs, retrieval.patience) == (9, 4)
    ranker = suggest_ranker(optuna.create_study().ask(), replace(RankerConfig(), max_visits=77))
    assert ranker.max_visits == 77
    assert ranker != RankerConfig()


def test_the_ranges_contain_the_standard_settings() -> None:
    """Otherwise the search could not come back to where it started."""
    for suggest, start in ((suggest_retrieval, standard().retrieval), (suggest_ranker, standard().ranker)):
        study = optuna.create_study()
        named = asdict(start)
        trial = study.ask()
        suggest(trial, start)  # type: ignore[operator]
        for name, distribution in trial.distributions.items():
            value = named[name][0] if isinstance(named[name], tuple) else named[name]
            assert distribution._contains(distribution.to_internal_repr(value)), name


def test_every_setting_of_the_ranges_may_be_written_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    towers, rankers = (optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)) for seed in (1, 2))
    for _ in range(30):
        retrieval = suggest_retrieval(towers.ask(), standard().retrieval)
        ranker = suggest_ranker(rankers.ask(), standard().ranker)
        path.write_text(json.dumps({"retrieval": asdict(retrieval), "ranker": asdict(ranker)}))
        assert read_config(path, base=standard()) == replace(standard(), retrieval=retrieval, ranker=ranker)
