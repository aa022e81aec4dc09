"""docs/fraud.md names the features, reason codes, defaults and settings of the code."""

import json
import re
from pathlib import Path

import pytest

from apps.fraud import detector, judgement, recent_payments
from features.contract.timestamps import DAY
from features.fraud import velocity
from features.history import arrays
from infra.settings import Settings
from training.config_file import read_config
from training.configs import standard
from training.fraud.detector import FraudConfig
from training.fraud.metrics import MIN_DECLINES

PAGE = (Path(__file__).parents[2] / "docs" / "fraud.md").read_text()
TEXT = " ".join(PAGE.split())


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(heading: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `.*", section(heading), re.M)
    ]


def test_the_features_are_those_of_the_code_in_their_order() -> None:
    table = rows("Features")
    assert tuple(cells[0].strip("`") for cells in table) == velocity.FEATURES
    assert all(len(cells) == 3 and all(cells) for cells in table)


def test_the_reasons_are_those_of_the_code() -> None:
    listed = {code.strip("`"): tuple(re.findall(r"`(\w+)`", names)) for code, names in rows("Reasons")}
    assert listed == {
        code: tuple(name for name in velocity.FEATURES if velocity.REASONS[name].code == code)
        for code in detector.CODES
    }
    assert list(listed) == list(detector.CODES)


def test_the_numbers_are_those_of_the_code() -> None:
    config = FraudConfig()
    assert velocity.HORIZON == arrays.TERMINAL_HORIZON == 37 * DAY
    for words in (
        f"at most {velocity.HORIZON // DAY} days",
        f"its latest {arrays.CARD_CAP} payments and a terminal its latest {arrays.TERMINAL_CAP}",
        f"The risk windows end {velocity.LABEL_DELAY // DAY} days ago",
        f"at most {velocity.MAX_IDLE // DAY} days",
        f"Paid before {velocity.LAST_NIGHT_HOUR + 1:02d}:00 UTC",
        f"validation ({config.validation_days} days), a gap ({config.label_delay_days} days",
        f"test ({config.test_days} days)",
        f"`alert_share`, {config.alert_share}",
        f"`decline_precision`, {config.decline_precision}",
        f"`label_delay_days`, {config.label_delay_days}",
        f"on at least {MIN_DECLINES} of them",
        f"each of at least {detector.SMALLEST_WEIGHT}",
        f"the last {recent_payments.RECENT_SECONDS / 60:.0f} minutes",
        f"{judgement.RULE_AMOUNT_RATIO:.0f} times the card's usual amount and at least {judgement.RULE_AMOUNT:.0f}",
        f"{judgement.RULE_BURST} payments of the card in an hour",
    ):
        assert words in TEXT, words
    assert detector.MAX_REASONS == 4
    assert judgement.EXPLAINED_FROM == 0.5


def test_the_settings_file_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)
    path = tmp_path / "settings.json"
    path.write_text(text)
    fraud = read_config(path, base=standard()).fraud
    assert {name: getattr(fraud, name) for name in json.loads(text)["fraud"]} == json.loads(text)["fraud"]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"HEADRACE_[A-Z_]+", PAGE))))
def test_every_setting_that_it_names_is_one(name: str) -> None:
    assert name.removeprefix("HEADRACE_").lower() in Settings.model_fields
