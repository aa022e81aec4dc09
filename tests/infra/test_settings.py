"""Settings from the environment: every error at once and in words, and names that nobody reads."""

import pytest
from click.testing import CliRunner

from infra.cli.commands import cli
from infra.settings import Settings, SettingsError, read_settings, unknown_variables


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "abc", "HEADRACE_PORT is 'abc': it must be a whole number from 1 to 65535"),
        ("PORT", "70000", "HEADRACE_PORT is '70000': it must be a whole number from 1 to 65535"),
        ("SEGMENT_MEBIBYTES", "0", "HEADRACE_SEGMENT_MEBIBYTES is '0': it must be a whole number, 1 or more"),
        ("KAFKA_RETENTION_DAYS", "x", "HEADRACE_KAFKA_RETENTION_DAYS is 'x': it must be a whole number, 1 or more"),
        ("KAFKA_TIMEOUT_SECONDS", "0", "HEADRACE_KAFKA_TIMEOUT_SECONDS is '0': it must be a number above 0"),
        ("LOG_FORMAT", "xml", "HEADRACE_LOG_FORMAT is 'xml': it must be text or json"),
        ("LOG_REQUESTS", "maybe", "HEADRACE_LOG_REQUESTS is 'maybe': it must be true or false"),
        ("SPARK_CONF", "{", """HEADRACE_SPARK_CONF is '{': it must be a JSON object of texts, as {"name": "value"}"""),
        (
            "SPARK_CONF",
            "[1]",
            """HEADRACE_SPARK_CONF is '[1]': it must be a JSON object of texts, as {"name": "value"}""",
        ),
    ],
)
def test_a_setting_of_each_kind_says_what_it_may_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    with pytest.raises(SettingsError) as raised:
        read_settings()
    assert str(raised.value) == message


def test_no_setting_is_described_in_the_words_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        name: schema
        for name, schema in Settings.model_json_schema()["properties"].items()
        if "string" not in str(schema.get("type", schema.get("anyOf")))
    }
    for name in kinds:
        monkeypatch.setenv(f"HEADRACE_{name.upper()}", "?")
    with pytest.raises(SettingsError) as raised:
        read_settings()
    lines = str(raised.value).splitlines()
    assert len(lines) == len(kinds) > 30
    assert all(" is '?': it must be a" in line or "true or false" in line for line in lines)


def test_every_error_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PORT", "abc")
    monkeypatch.setenv("HEADRACE_LOG_FORMAT", "xml")
    result = CliRunner().invoke(cli, ["releases"])
    assert result.exit_code == 1
    assert "HEADRACE_PORT is 'abc'" in result.output
    assert "HEADRACE_LOG_FORMAT is 'xml'" in result.output
    assert "pydantic" not in result.output


def test_settings_of_the_environment_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PORT", "8001")
    monkeypatch.setenv("HEADRACE_SPARK_CONF", '{"spark.executor.cores": "2"}')
    assert (read_settings().port, read_settings().spark_conf) == (8001, {"spark.executor.cores": "2"})


def test_an_unknown_name_is_shown_once_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PROT", "8001")
    monkeypatch.setenv("HEADRACE_BIN", "/usr/bin/headrace")
    monkeypatch.setenv("HEADRACE_RETRY_SECONDS", "1")
    monkeypatch.setenv("HEADRACE_API_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HEADRACE_API_PORT_8000_TCP_ADDR", "10.0.0.1")
    (line,) = unknown_variables()
    assert line.startswith("HEADRACE_PROT is no setting and has no effect; the nearest is HEADRACE_PORT")
    result = CliRunner().invoke(cli, ["releases"])
    assert result.stderr.count("HEADRACE_PROT") == 1
