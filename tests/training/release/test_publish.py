"""Tests publishing: the current release is whole at every moment, and a rollback moves the link."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from features.contract.release import CURRENT, MANIFEST, Manifest, ReleaseError, current_version, read_release
from training.release import publish
from training.release.publish import KEPT_RELEASES, begin, point_to, rollback, versions

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def manifest(version: str) -> Manifest:
    return Manifest(
        version=version, created_time=NOW, data_start=NOW, data_end=NOW, packages={}, seed=7, files={"lie": "0"}
    )


def release(releases: Path, version: str) -> Path:
    building = begin(releases, version)
    (building / "ranker.onnx").write_bytes(version.encode() * 1000)
    (building / "items.faiss").write_bytes(b"index")
    return publish.publish(building, manifest(version))


def test_a_release_is_complete_and_pointed_to(tmp_path: Path) -> None:
    assert (versions(tmp_path / "none"), current_version(tmp_path)) == ([], None)
    folder = release(tmp_path, "v1")
    assert (folder, current_version(tmp_path)) == (tmp_path / "v1", "v1")
    _, read = read_release(tmp_path, "v1")
    assert set(read.files) == {"ranker.onnx", "items.faiss"}
    assert {path.name for path in folder.iterdir()} == {"ranker.onnx", "items.faiss", MANIFEST}
    assert (tmp_path / CURRENT / "items.faiss").read_bytes() == b"index"
    assert not list(tmp_path.glob(".*"))


def test_an_unfinished_folder_never_becomes_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(tmp_path, "v1")
    half = begin(tmp_path, "v2")
    (half / "ranker.onnx").write_bytes(b"half")
    assert (versions(tmp_path), current_version(tmp_path)) == (["v1"], "v1")
    for step in ("checksum", "sync", "point_to"):
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise OSError("No space left on device")

            patch.setattr(publish, step, full)
            with pytest.raises(OSError, match="No space left"):
                release(tmp_path, f"v2-{step}")
        assert current_version(tmp_path) == "v1"
        read_release(tmp_path, "v1")
    # A second try begins with an empty folder.
    assert list(begin(tmp_path, "v2").iterdir()) == []
    assert release(tmp_path, "v2").name == "v2"
    assert current_version(tmp_path) == "v2"


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_a_damaged_release_is_refused_and_the_old_one_stays(tmp_path: Path, damage: str) -> None:
    release(tmp_path, "v1")
    release(tmp_path, "v2")
    point_to(tmp_path, "v1")
    if damage == "changed":
        (tmp_path / "v2" / "items.faiss").write_bytes(b"other")
    else:
        (tmp_path / "v2" / ("items.faiss" if damage == "missing" else MANIFEST)).unlink()
    for version in ("v2", "v3"):
        with pytest.raises(ReleaseError, match=version):
            point_to(tmp_path, version)
    assert current_version(tmp_path) == "v1"


def test_rolling_back_goes_to_the_release_before(tmp_path: Path) -> None:
    for version in ("v1", "v2", "v3"):
        release(tmp_path, version)
    assert (rollback(tmp_path), current_version(tmp_path)) == ("v2", "v2")
    (tmp_path / "v1" / "items.faiss").unlink()
    with pytest.raises(ReleaseError, match="lacks its file"):
        rollback(tmp_path)
    assert current_version(tmp_path) == "v2"
    point_to(tmp_path, "v3")
    assert current_version(tmp_path) == "v3"


def test_there_may_be_nothing_to_go_back_to(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ReleaseError, match="no earlier release"):
            rollback(tmp_path)
        if not versions(tmp_path):
            release(tmp_path, "v1")


def test_old_releases_are_dropped_but_never_the_current_one(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(1, KEPT_RELEASES + 3)]
    for name in names:
        release(tmp_path, name)
    assert versions(tmp_path) == names[-KEPT_RELEASES:]
    point_to(tmp_path, names[-KEPT_RELEASES])
    publish._drop_old(tmp_path)
    release(tmp_path, "v8")
    assert versions(tmp_path) == [*names[-KEPT_RELEASES + 1 :], "v8"]


def test_a_reader_beside_it_finds_a_whole_release_at_every_moment(tmp_path: Path) -> None:
    release(tmp_path, "v0")
    stop, seen, errors = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                version = current_version(tmp_path)
                assert version is not None
                read_release(tmp_path, version)
                seen.add(version)
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, KEPT_RELEASES):
        release(tmp_path, f"v{number}")
    stop.set()
    reader.join(10)
    assert errors == []
    assert seen
