"""Invoice lines become events: what is refused and why, how times move, how the file is downloaded and recognised."""

import http.server
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pytest

from apps.commands import online_retail
from apps.commands.online_retail import COLUMNS, LINES, DataError, download, read_lines, to_events
from features.contract.columns import SHOP_EVENTS_SCHEMA

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LAST = datetime(2011, 12, 9, 12, 50)
WHOLE = Path(__file__).parents[4] / "shared" / "data" / "online_retail"


def line(invoice: str = "536365", code: str = "85123A", **more: Any) -> dict[str, Any]:
    usual = {"Description": "WHITE HEART", "Quantity": 6, "InvoiceDate": datetime(2011, 12, 1, 8, 26), "UnitPrice": 2.5}
    return {"InvoiceNo": invoice, "StockCode": code, **usual, "CustomerID": 17850.0, "Country": "France"} | more


def frame(*lines: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=list(COLUMNS))


def events_of(*lines: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = to_events(frame(*lines), now=NOW).events.to_pylist()
    return [row for row in rows if row["type"] != "item"]


REFUSED = {
    "no customer": {"CustomerID": None},
    "adjustment, not a product": {"StockCode": "POST"},
    "price is not above 0": {"UnitPrice": 0.0},
    "quantity is 0": {"Quantity": 0},
    "negative quantity outside a cancellation": {"Quantity": -3},
    "no time or quantity": {"InvoiceDate": None},
}


@pytest.mark.parametrize(("reason", "change"), REFUSED.items(), ids=REFUSED)
def test_a_line_that_is_no_event_comes_back_with_its_reason(reason: str, change: dict[str, Any]) -> None:
    imported = to_events(frame(line(), line(**change)), now=NOW)
    assert [text for text, _ in imported.rejected] == [reason]
    assert imported.rejected[0][1]["Description"] == "WHITE HEART"
    assert imported.events["type"].to_pylist() == ["item", "purchase"]


@pytest.mark.parametrize("code", ["M", "D", "C2", "DOT", "BANK CHARGES", "AMAZONFEE", "S", "gift_0001_20", None])
def test_adjustments_are_no_products(code: str) -> None:
    assert [text for text, _ in to_events(frame(line(), line(code=code)), now=NOW).rejected] == [
        "adjustment, not a product"
    ]


def test_lines_are_either_events_or_refused_and_are_counted() -> None:
    lines = frame(*(line(**change) for change in REFUSED.values()), line(), line(UnitPrice=-1.0, CustomerID=None))
    imported = to_events(lines, now=NOW)
    assert pc.sum(pc.not_equal(imported.events["type"], "item")).as_py() + len(imported.rejected) == len(lines)
    assert Counter(text for text, _ in imported.rejected)["no customer"] == 2
    assert imported.quality == {"completeness": 5 / 8, "accuracy": 4 / 8, "consistency": 1.0}


def test_purchases_and_cancellations_become_events() -> None:
    bought, returned = events_of(line(), line("C536379", Quantity=-2, InvoiceDate=datetime(2011, 12, 2)))
    assert {name: value for name, value in bought.items() if value is not None and name != "event_time"} == {
        "event_id": "536365:0", "type": "purchase", "user_id": "17850", "item_id": "85123A", "quantity": 6.0,
        "price": 2.5, "order_id": "536365",
    }  # fmt: skip
    assert (returned["type"], returned["quantity"], returned["event_id"]) == ("return", 2.0, "C536379:0")


def test_every_line_of_an_invoice_has_an_id_of_its_own() -> None:
    ids = [event["event_id"] for event in events_of(line(), line(), line("536366"), line(code="21730"))]
    assert ids == ["536365:0", "536365:1", "536366:0", "536365:2"]


def test_the_catalogue_comes_first_with_the_commonest_title_and_the_latest_price() -> None:
    imported = to_events(
        frame(
            line(Description="wrongly marked", UnitPrice=9.0, InvoiceDate=datetime(2011, 12, 3)),
            line(UnitPrice=1.0), line(UnitPrice=2.0), line(code="21730", Description=None),
        ),
        now=NOW,
    )  # fmt: skip
    other, item, *rest = imported.events.to_pylist()
    assert (item["event_id"], item["title"], item["price"]) == ("item:85123A", "White Heart", 9.0)
    assert (other["event_id"], other["title"]) == ("item:21730", "")
    assert all(event["type"] == "purchase" for event in rest)
    assert imported.events.schema == SHOP_EVENTS_SCHEMA
    assert item["event_time"] <= min(event["event_time"] for event in rest)


@pytest.mark.parametrize("days", [0, 1, 6.999, 7, 5460.5])
def test_times_move_by_whole_weeks_into_the_week_that_ends_now(days: float) -> None:
    now = LAST.replace(tzinfo=UTC) + timedelta(days=days)
    imported = to_events(frame(line(), line(InvoiceDate=LAST, CustomerID=None)), now=now)
    assert imported.shift % timedelta(weeks=1) == timedelta(0)
    assert timedelta(0) <= now - (LAST.replace(tzinfo=UTC) + imported.shift) < timedelta(weeks=1)
    moment = datetime.fromtimestamp(imported.events["event_time"][-1].as_py() / 1000, tz=UTC)
    assert (moment.weekday(), moment.hour, moment.minute) == (3, 8, 26)


def test_a_sample_keeps_whole_customers_and_is_always_the_same() -> None:
    lines = frame(*(line(str(536365 + number), CustomerID=float(number % 40)) for number in range(400)))
    first, second = (to_events(lines, now=NOW, customers=10).events for _ in range(2))
    assert first.equals(second)
    sizes = Counter(first.filter(pc.equal(first["type"], "purchase"))["user_id"].to_pylist())
    assert (len(sizes), set(sizes.values())) == (10, {10})


def write_zip(path: Path, lines: pd.DataFrame, *, sheets: int = 1) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(sheets):
            with archive.open(f"sheet{number}.xlsx", "w") as sheet:
                lines.to_excel(sheet, index=False)
    return path.read_bytes()


def test_a_sheet_in_a_zip_reads_as_the_same_lines_do_from_parquet(tmp_path: Path) -> None:
    lines = frame(line(), line("C536379", code="21730", Quantity=-1, CustomerID=None))
    lines["StockCode"] = ["85123A", "21730"]
    write_zip(tmp_path / "data.zip", lines)
    (tmp_path / "folder").mkdir()
    lines.to_parquet(tmp_path / "folder" / "lines.parquet")
    lines.to_excel(tmp_path / "data.xlsx", index=False)
    expected = to_events(lines, now=NOW)
    for path in (tmp_path / "data.zip", tmp_path / "folder", tmp_path / "data.xlsx"):
        imported = to_events(read_lines(path, expected=2), now=NOW)
        assert imported.events.equals(expected.events)
        assert [text for text, _ in imported.rejected] == ["no customer"]


def test_what_is_not_the_data_is_refused_in_clear_words(tmp_path: Path) -> None:
    frame(line()).to_parquet(tmp_path / "short.parquet")
    frame(line()).drop(columns=["UnitPrice", "Country"]).to_parquet(tmp_path / "columns.parquet")
    (tmp_path / "page.zip").write_bytes(b"<html>Not found</html>")
    (tmp_path / "page.xlsx").write_bytes(b"<html>Not found</html>")
    (tmp_path / "page.parquet").write_bytes(b"<html>Not found</html>")
    write_zip(tmp_path / "two.zip", frame(line()), sheets=2)
    (tmp_path / "empty").mkdir()
    for name, words in {
        "short.parquet": "has 1 line instead of 541,909: remove it and download it again",
        "columns.parquet": "lacks the columns UnitPrice, Country: it is not the Online Retail data",
        "page.zip": "cannot be read as Online Retail data",
        "page.xlsx": "cannot be read as Online Retail data",
        "page.parquet": "cannot be read as Online Retail data",
        "two.zip": "should hold one Excel sheet",
        "empty": "holds no Parquet, Excel or zip file",
        "absent.zip": "does not exist; name the Online Retail file with --data",
    }.items():
        with pytest.raises(DataError, match=words):
            read_lines(tmp_path / name)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` with ranges; breaks off `breaks` times, each time after a third of what is left."""

    content = b""
    breaks = 0
    chunked = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.starts: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/352/online+retail.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        whole = self.server.content
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.starts.append(start)
        if start >= len(whole):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            self.end_headers()
            return
        body = whole[start:]
        self.protocol_version = "HTTP/1.1"
        self.close_connection = True
        self.send_response(206 if start else 200)
        sent = body
        if self.server.breaks:
            self.server.breaks -= 1
            sent = body[: len(body) // 3]
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s" % (len(body), sent))
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server() as server:
        server.content = write_zip(tmp_path / "served.zip", frame(line(), line(CustomerID=None)))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_that_stopped_resumes(server: Server, tmp_path: Path) -> None:
    server.breaks, progress = 2, []
    for _ in range(2):
        with pytest.raises(DataError, match=r"stopped after [\d,]+ of [\d,]+ bytes; try again: it resumes"):
            download(server.url, tmp_path / "to")
    path = download(server.url, tmp_path / "to", on_progress=lambda done, total: progress.append((done, total)))
    assert path.read_bytes() == server.content
    assert server.starts == [0, *sorted(server.starts[1:])]
    assert server.starts[2] > server.starts[1] > 0
    assert progress[-1] == (len(server.content), len(server.content))
    assert len(read_lines(path, expected=2)) == 2
    assert download(server.url, tmp_path / "to") == path
    assert len(server.starts) == 3


def test_a_download_without_a_length_that_stops_is_reported(server: Server, tmp_path: Path) -> None:
    server.breaks, server.chunked = 1, True
    with pytest.raises(DataError, match="cannot be downloaded"):
        download(server.url, tmp_path)
    assert not (tmp_path / online_retail.ARCHIVE).exists()


def test_a_part_that_is_whole_already_is_taken_and_one_of_another_file_is_dropped(
    server: Server, tmp_path: Path
) -> None:
    part = tmp_path / f"{online_retail.ARCHIVE}.part"
    part.write_bytes(b"x" * (len(server.content) + 5))
    with pytest.raises(DataError, match="416"):
        download(server.url, tmp_path)
    assert not part.exists()
    part.write_bytes(server.content)
    assert download(server.url, tmp_path).read_bytes() == server.content


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x cannot be downloaded"):
        download("http://127.0.0.1:9/x", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE.exists(), reason="the whole data set is not beside the project")
def test_every_line_of_the_whole_data_set_is_accounted_for() -> None:
    imported = to_events(read_lines(WHOLE), now=NOW)
    types = Counter(imported.events["type"].to_pylist())
    reasons = Counter(text for text, _ in imported.rejected)
    assert types["purchase"] + types["return"] + len(imported.rejected) == LINES
    assert types == {"purchase": 396_337, "return": 8_539, "item": 3_676}
    assert reasons == {"no customer": 135_080, "adjustment, not a product": 1_920, "price is not above 0": 33}
    assert len(set(imported.events["event_id"].to_pylist())) == imported.events.num_rows
    times = imported.events["event_time"]
    assert pc.max(times).as_py() <= NOW.timestamp() * 1000
    assert set(imported.quality) == {"completeness", "accuracy", "consistency"}
