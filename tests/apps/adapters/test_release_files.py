"""A release that is not whole is refused, and the one before it keeps serving."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from apps.adapters.release_files import Releases
from features.manifest import Manifest
from training import publish


def release(folder: Path, version: str) -> Path:
    """A published release without models: enough to be loaded."""
    building = publish.begin(folder, version)
    (building / "notes.txt").write_text(version)
    day = datetime(2026, 11, 1, tzinfo=UTC)
    manifest = Manifest(version=version, created_time=day, data_start=day, data_end=day, packages={}, seed=1, files={})
    return publish.publish(building, manifest)


def test_the_next_release_is_picked_up(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert not releases.poll()
    release(tmp_path, "v1")
    assert releases.poll()
    release(tmp_path, "v2")
    assert releases.poll()
    assert releases.version == "v2"
    assert not releases.poll()


def test_a_wrong_checksum_is_refused_and_the_old_release_keeps_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    releases = Releases(tmp_path)
    release(tmp_path, "v1")
    releases.poll()
    (release(tmp_path, "v2") / "notes.txt").write_text("bit rot")
    with caplog.at_level(logging.ERROR):
        assert not releases.poll()
    assert releases.version == "v1"
    assert "differs from its checksum" in caplog.text
    release(tmp_path, "v3")
    assert releases.poll()
    assert releases.version == "v3"


def test_a_release_being_written_is_not_seen(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    release(tmp_path, "v1")
    releases.poll()
    building = publish.begin(tmp_path, "v2")
    (building / "notes.txt").write_text("half")
    assert not releases.poll()
    assert publish.versions(tmp_path) == ["v1"]
