"""Files of the offline store are whole or absent, and a dead letter tells where it came from."""

from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contract.columns import SHOP_EVENTS
from infra import topics
from infra.log.client import START
from infra.log.files import FileLog
from streaming import tables
from streaming.tables import SCHEMAS, as_schema, dead_letter, write_table


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "table"
    write_table(folder, "batch-1", pa.table({"a": [1, 2]}))
    write_table(folder, "batch-1", pa.table({"a": [3]}))
    assert [path.name for path in folder.iterdir()] == ["batch-1.parquet"]
    assert pq.read_table(folder)["a"].to_pylist() == [3]

    def break_off(table: pa.Table, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"PAR1 half")
        raise OSError("No space left on device")

    monkeypatch.setattr(tables.pq, "write_table", break_off)
    with pytest.raises(OSError, match="No space"):
        write_table(folder, "batch-1", pa.table({"a": [4]}))
    # What is left of it has a hidden name, which readers of the folder pass over.
    assert pq.read_table(folder)["a"].to_pylist() == [3]


def test_a_known_table_has_its_columns_in_its_types() -> None:
    loose = {name: pa.nulls(1) for name in SCHEMAS[SHOP_EVENTS].names}
    loose |= {"quantity": pa.array([2]), "event_id": pa.array(["e"]), "more": pa.array([1])}
    table = as_schema(pa.table(loose), SHOP_EVENTS)
    assert table.schema == SCHEMAS[SHOP_EVENTS]
    assert (table["quantity"].to_pylist(), table["user_id"].to_pylist()) == ([2.0], [None])


def test_a_dead_letter_keeps_value_reason_and_origin(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    rejected = pa.table(
        {
            "topic": ["shop_events"] * 2,
            "partition": [0, 3],
            "offset": [0, 77],
            "value": ['{"half', "\x00"],
            "reason": ["unknown type"] * 2,
        }
    )
    dead_letter(log, rejected)
    first, second = log.read(topics.DEAD_LETTERS, START)
    assert first.key == "unknown type"
    assert orjson.loads(first.value) == {
        "event_id": "shop_events:0:0",
        "reason": "unknown type",
        "origin": {"topic": "shop_events", "partition": 0, "offset": 0},
        "value": '{"half',
    }
    assert orjson.loads(second.value)["event_id"] == "shop_events:3:77"
    dead_letter(log, rejected.slice(0, 0))
    assert len(log.read(topics.DEAD_LETTERS, START)) == 2
