"""A release is read only when every file in it is what the manifest says."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from features.contract.release import (
    CURRENT,
    MANIFEST,
    FraudModelCard,
    GateResult,
    Manifest,
    ReleaseError,
    checksum,
    current_version,
    read_release,
)

NOW = datetime(2026, 11, 22, tzinfo=UTC)
RANKER_SHA256 = "310bcf575dace095466158e1f51c2f69d67855e4a0980c92b0d969a988e04945"


def manifest(**files: str) -> Manifest:
    named = {name.replace("_", "."): digest for name, digest in files.items()}
    return Manifest(
        version="v1", created_time=NOW, data_start=NOW, data_end=NOW, packages={"numpy": "2"}, seed=7, files=named
    )


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A whole release of two files."""
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "ranker.onnx").write_bytes(b"ranker")
    (folder / "items.faiss").write_bytes(b"index")
    whole = manifest(ranker_onnx=checksum(folder / "ranker.onnx"), items_faiss=checksum(folder / "items.faiss"))
    (folder / MANIFEST).write_text(whole.model_dump_json())
    return folder


def test_a_whole_release_is_read(release: Path) -> None:
    folder, read = read_release(release.parent, "v1")
    assert folder == release
    assert read == Manifest.model_validate_json((release / MANIFEST).read_text())
    assert checksum(release / "ranker.onnx") == RANKER_SHA256


def test_a_file_that_changed_is_refused_by_name(release: Path) -> None:
    (release / "ranker.onnx").write_bytes(b"ranked")
    with pytest.raises(ReleaseError, match=r"v1: ranker\.onnx differs from its checksum; publish it again"):
        read_release(release.parent, "v1")


def test_a_file_that_is_missing_is_refused_by_name(release: Path) -> None:
    (release / "items.faiss").unlink()
    with pytest.raises(ReleaseError, match=r"v1 lacks its file items\.faiss; publish it again"):
        read_release(release.parent, "v1")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "sub/../../secret", ""])
def test_a_name_that_leads_out_of_the_release_is_refused(release: Path, name: str) -> None:
    secret = release.parent / "secret"
    secret.write_text("mine")
    files = {name: checksum(secret)}
    (release / MANIFEST).write_text(manifest().model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(ReleaseError, match="lacks its file"):
        read_release(release.parent, "v1")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"format": 2, "version": "v1"}'], ids=str)
def test_an_unreadable_manifest_is_refused(release: Path, content: bytes) -> None:
    (release / MANIFEST).write_bytes(content)
    with pytest.raises(ReleaseError, match="release v1 has no readable manifest"):
        read_release(release.parent, "v1")


def test_another_format_and_a_truncated_manifest_are_refused(release: Path) -> None:
    text = (release / MANIFEST).read_text()
    for changed in (text.replace('"format":1', '"format":2'), text[: len(text) // 2]):
        (release / MANIFEST).write_text(changed)
        with pytest.raises(ReleaseError, match="no readable manifest"):
            read_release(release.parent, "v1")


def test_a_release_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="release v9 has no readable manifest"):
        read_release(tmp_path, "v9")


def test_the_pointer_names_the_version(release: Path) -> None:
    assert current_version(release.parent) is None
    assert current_version(release.parent / "nothing") is None
    os.symlink("v1", release.parent / CURRENT)
    assert current_version(release.parent) == "v1"


def test_manifests_from_before_0_2_are_read() -> None:
    gate = GateResult(
        metric="ndcg@20", scores={}, model="ranker", best_baseline="popularity", served="ranker", metrics={}
    )
    card = FraudModelCard(
        feature_service="fraud_v1", gate=gate, features=("amount",), reference_values=(1.0,), review_threshold=0.5,
        decline_threshold=0.9, alert_budget_per_day=10,
    )  # fmt: skip
    now = json.loads(card.model_dump_json())
    before = {"baseline" if name == "reference_values" else name: value for name, value in now.items()}
    before["gate"] = {"best_floor" if name == "best_baseline" else name: value for name, value in now["gate"].items()}
    assert before.keys() != now.keys()
    assert FraudModelCard.model_validate_json(json.dumps(before)) == card
