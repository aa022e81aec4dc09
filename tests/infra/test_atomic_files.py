"""Replacing a file: a reader sees the old or the new one, and a failure leaves nothing behind."""

import os
from pathlib import Path

import pytest

from infra import atomic_files
from infra.atomic_files import replacing


def test_the_new_content_replaces_the_old_and_the_folder_is_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with replacing(path) as hidden:
            hidden.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as hidden:
            hidden.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []
    monkeypatch.setattr(
        atomic_files.os, "fsync", lambda number: synced.append((os.readlink(f"/proc/self/fd/{number}"), path.exists()))
    )
    with replacing(path) as hidden:
        hidden.write_text("text")
    assert synced == [(str(hidden), False), (str(tmp_path), True)]
