"""The session's Java: which options it gets, and what is left out where there is nothing to pass."""

from pathlib import Path

import pytest

from infra.settings import Settings
from streaming import session


def test_java_gets_the_archive_of_classes_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "classes.jsa"
    monkeypatch.setattr(session, "CLASS_ARCHIVE", archive)
    assert "SharedArchiveFile" not in session._java_options(Settings())
    archive.touch()
    assert f"-XX:SharedArchiveFile={archive}" in session._java_options(Settings())


def test_java_options_are_a_setting() -> None:
    assert "-XX:+UseZGC" in session._java_options(Settings(spark_java_options="-XX:+UseZGC"))
