"""Small files become large ones without a row lost, out of order, or missing to somebody who reads meanwhile."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra import atomic_files
from streaming import compaction
from streaming.compaction import compact
from streaming.tables import write_table

LATER = compaction.GRACE_SECONDS + 60


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FILES", 4)
    monkeypatch.setattr(compaction, "ROW_GROUP", 5)
    monkeypatch.setattr(atomic_files, "sync", lambda path: None)  # hundreds of files


def write(folder: Path, number: int, *, name: str = "") -> None:
    write_table(folder, f"batch-{number:012d}{name}", pa.table({"n": [2 * number, 2 * number + 1]}))


def read(folder: Path) -> list[int]:
    return list(dict.fromkeys(ds.dataset(folder).to_table()["n"].to_pylist()))


def names(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("batch-0000000000").removesuffix(".parquet") for path in folder.iterdir())


def age(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.iterdir()) + LATER


def test_the_oldest_files_become_one_and_go_after_a_while(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, number)
    assert compact(tmp_path) == 0  # the newest is left alone
    write(tmp_path, 4)
    write(tmp_path, 5)
    assert compact(tmp_path) == 4
    assert names(tmp_path) == ["00", "01", "02", "03", "03-joined-1", "04", "05"]
    assert read(tmp_path) == list(range(12))
    assert compact(tmp_path) == 0
    assert compact(tmp_path, clock=lambda: age(tmp_path)) == 4
    assert names(tmp_path) == ["03-joined-1", "04", "05"]
    assert read(tmp_path) == list(range(12))


def test_files_that_joins_follow_fast_go_all_the_same(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path, number)
    compact(tmp_path)
    for number in range(6, 10):
        write(tmp_path, number)
    old = (tmp_path / "batch-000000000003-joined-1.parquet").stat().st_mtime
    compact(tmp_path, clock=lambda: old + compaction.GRACE_SECONDS - 1)
    assert names(tmp_path)[:5] == ["00", "01", "02", "03", "03-joined-1"]
    os.utime(tmp_path / "batch-000000000007-joined-1.parquet", (old + 100, old + 100))
    compact(tmp_path, clock=lambda: old + compaction.GRACE_SECONDS + 0.01)
    assert names(tmp_path)[:2] == ["03-joined-1", "04"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 40), again=st.sets(st.integers(0, 39)), data=st.data())
def test_whatever_comes_nothing_is_lost_and_few_files_are_left(
    tmp_path_factory: pytest.TempPathFactory, count: int, again: set[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("table")
    for number in range(count):
        write(folder, number)
        if number in again:
            write(folder, number, name="-again-1")
        if data.draw(st.integers(0, 5)) == 0:
            compact(folder, clock=lambda: age(folder))
            assert read(folder) == list(range(2 * number + 2))
    while compact(folder, clock=lambda: age(folder) if count else 0):
        pass
    assert not count or read(folder) == list(range(2 * count))
    assert len(names(folder)) <= 3 * (4 + 2)


def test_a_join_that_is_cut_off_leaves_the_table_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write(tmp_path, number)
    before = names(tmp_path)

    def cut_off(*_: object) -> object:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_groups", cut_off)
        with pytest.raises(OSError, match="No space"):
            compact(tmp_path)
    assert names(tmp_path) == before
    assert compact(tmp_path) == 4


def test_a_table_that_nobody_wrote_has_nothing_to_join(tmp_path: Path) -> None:
    assert compact(tmp_path / "none") == 0
