"""Turns the Online Retail data (Chen, Sain and Guo 2012; UCI data set 352) into shop events.

541,909 invoice lines of a British web shop, 2010-12-01 to 2011-12-09. Purchases and cancellations become purchase
and return events; lines that cannot be events come back with a reason. Times are moved forward by whole weeks, so
that the last line falls into the week that ends now: weekdays and hours stay as they were.
"""

import http.client
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from python_calamine import CalamineError

from apps.wording import counted
from features.contract.columns import SHOP_EVENTS_SCHEMA

COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
LINES = 541_909
ARCHIVE = "online_retail.zip"
PRODUCT_CODE = r"^(?:\d{5}|DCGS)"
"""What a product's StockCode looks like; the rest is postage, fees, vouchers and corrections."""
WEEK = timedelta(weeks=1)


class DataError(Exception):
    """The data is not what it should be, or is not available; the message says what to do."""


@dataclass(frozen=True)
class Imported:
    """Events to append to the log, and the lines that cannot be events."""

    events: pa.Table
    """Schema SHOP_EVENTS_SCHEMA, ascending in time, the catalogue first."""
    rejected: list[tuple[str, dict[str, Any]]]
    """Reason and line of everything that is not an event."""
    shift: timedelta
    """How far times were moved forward."""
    quality: dict[str, float]
    """Shares of lines, 0 to 1: completeness, accuracy, consistency."""


def download(url: str, folder: Path, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Downloads the archive into `folder`, resuming an earlier download that stopped; returns its path.

    Raises DataError when the server cannot be reached or answers with an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / ARCHIVE, folder / f"{ARCHIVE}.part"
    if path.exists():
        return path
    received = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={received}-"} if received else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            resumed = answer.status == 206
            total = int(answer.headers.get("Content-Length") or 0) + (received if resumed else 0)
            done = received if resumed else 0
            with part.open("ab" if resumed else "wb") as file:
                while chunk := answer.read(1 << 16):
                    file.write(chunk)
                    done += len(chunk)
                    on_progress(done, total)
    except urllib.error.HTTPError as error:
        # Refused range: the part is the whole file already, or a part of another one.
        complete = error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{received}")
        if error.code == 416 and not complete:
            part.unlink()
        if not complete:
            raise DataError(f"{url} cannot be downloaded ({error}); try again later") from error
        total = done = received
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url} cannot be downloaded ({error}); try again: the download resumes") from error
    if total and done != total:
        raise DataError(f"the download of {url} stopped after {done:,} of {total:,} bytes; try again: it resumes")
    part.replace(path)
    return path


def read_lines(path: Path, *, expected: int | None = LINES) -> pd.DataFrame:
    """Returns the invoice lines of a Parquet file, an Excel sheet, a zip with one, or a folder with one of these.

    Raises DataError when the columns or (unless None) the number of lines are not those of the data set.
    """
    if path.is_dir():
        files = [file for pattern in ("*.parquet", "*.zip", "*.xlsx") for file in sorted(path.glob(pattern))]
        if not files:
            raise DataError(f"{path} holds no Parquet, Excel or zip file; name the file itself with --data")
        path = files[0]
    if not path.exists():
        raise DataError(f"{path} does not exist; name the Online Retail file with --data")
    try:
        lines = _read(path)
    except (ValueError, OSError, RuntimeError, pa.ArrowException, zipfile.BadZipFile, CalamineError) as error:
        raise DataError(f"{path} cannot be read as Online Retail data: {error}") from error
    if missing := [name for name in COLUMNS if name not in lines.columns]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: it is not the Online Retail data")
    if expected is not None and len(lines) != expected:
        raise DataError(
            f"{path} has {counted(len(lines), 'line')} instead of {expected:,}: remove it and download it again"
        )
    return lines[list(COLUMNS)]


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            sheets = [name for name in archive.namelist() if name.endswith(".xlsx")]
            if len(sheets) != 1:
                raise ValueError("the archive should hold one Excel sheet")
            with archive.open(sheets[0]) as sheet:
                return pd.read_excel(sheet, engine="calamine", dtype={"InvoiceNo": str, "StockCode": str})
    return pd.read_excel(path, engine="calamine", dtype={"InvoiceNo": str, "StockCode": str})


def to_events(lines: pd.DataFrame, *, now: datetime, customers: int | None = None) -> Imported:
    """Turns invoice lines into events, the last of which lies in the week before `now`.

    customers: keep only that many customers, chosen by a fixed hash of their number (None: all).
    """
    lines = lines.copy()
    lines["InvoiceNo"] = lines["InvoiceNo"].astype(str)
    lines["StockCode"] = lines["StockCode"].astype(str).str.strip()
    if customers is not None:
        lines = _sample(lines, customers)
    reason = _reasons(lines)
    quality = _quality(lines, reason)
    rejected: list[tuple[str, dict[str, Any]]] = [
        (str(text), {str(name): value for name, value in line.items()})
        for text, line in zip(reason[reason != ""], lines[reason != ""].to_dict("records"), strict=True)
    ]
    last = lines["InvoiceDate"].max()
    shift = (now.replace(tzinfo=None) - last.to_pydatetime()) // WEEK * WEEK
    good = lines[reason == ""].sort_values("InvoiceDate", kind="stable")
    events = pa.concat_tables([_catalogue(good, shift), _purchases(good, shift)])
    return Imported(events, rejected, shift, quality)


def _sample(lines: pd.DataFrame, customers: int) -> pd.DataFrame:
    ids = np.sort(lines["CustomerID"].dropna().unique().astype(np.int64))
    order = np.argsort(pd.util.hash_array(ids), kind="stable")
    chosen = set(ids[order[:customers]].tolist())
    # Lines without a customer stay in the same proportion, to be counted and refused like the rest.
    share = min(1.0, customers / max(1, len(ids)))
    anonymous = lines["CustomerID"].isna() & (pd.util.hash_array(np.arange(len(lines))) % 1000 < share * 1000)
    return lines[lines["CustomerID"].isin(chosen) | anonymous]


def _reasons(lines: pd.DataFrame) -> pd.Series:
    """Returns why each line is not an event; an empty text where it is one."""
    reason = pd.Series("", index=lines.index, dtype=object)
    checks = (
        ("no time or quantity", lines[["InvoiceDate", "Quantity"]].isna().any(axis=1)),
        ("no customer", lines["CustomerID"].isna()),
        ("adjustment, not a product", ~lines["StockCode"].str.match(PRODUCT_CODE)),
        ("price is not above 0", ~(lines["UnitPrice"] > 0)),
        ("quantity is 0", lines["Quantity"] == 0),
        ("negative quantity outside a cancellation", (lines["Quantity"] < 0) & ~lines["InvoiceNo"].str.startswith("C")),
    )
    for text, bad in checks:
        reason[(reason == "") & bad] = text
    return reason


def _quality(lines: pd.DataFrame, reason: pd.Series) -> dict[str, float]:
    complete = lines[["CustomerID", "StockCode", "Quantity", "InvoiceDate", "UnitPrice"]].notna().all(axis=1)
    accurate = (lines["UnitPrice"] > 0) & (lines["Quantity"] != 0) & lines["StockCode"].str.match(PRODUCT_CODE)
    titles = lines[reason == ""].groupby("StockCode")["Description"].nunique()
    return {
        "completeness": float(complete.mean()),
        "accuracy": float(accurate.mean()),
        "consistency": float((titles <= 1).mean()) if len(titles) else 1.0,
    }


def _milliseconds(times: pd.Series, shift: timedelta) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (times + shift).to_numpy().astype("datetime64[ms]").astype(np.int64)


def _purchases(good: pd.DataFrame, shift: timedelta) -> pa.Table:
    line = good.groupby("InvoiceNo").cumcount()
    count = len(good)
    return pa.table(
        {
            "event_id": (good["InvoiceNo"] + ":" + line.astype(str)).to_numpy(),
            "type": np.where(good["InvoiceNo"].str.startswith("C"), "return", "purchase"),
            "event_time": _milliseconds(good["InvoiceDate"], shift),
            "user_id": good["CustomerID"].astype(int).astype(str).to_numpy(),
            "session_id": pa.nulls(count, pa.string()),
            "item_id": good["StockCode"].to_numpy(),
            "quantity": good["Quantity"].abs().astype(float).to_numpy(),
            "price": good["UnitPrice"].astype(float).to_numpy(),
            "order_id": good["InvoiceNo"].to_numpy(),
            "request_id": pa.nulls(count, pa.string()),
            "title": pa.nulls(count, pa.string()),
            "category": pa.nulls(count, pa.string()),
        },
        schema=SHOP_EVENTS_SCHEMA,
    )


def _catalogue(good: pd.DataFrame, shift: timedelta) -> pa.Table:
    """Returns one item event per product: its most frequent description and latest price, at its first sale."""
    descriptions = good.groupby(["StockCode", "Description"], as_index=False).size().sort_values("size", kind="stable")
    titles = descriptions.drop_duplicates("StockCode", keep="last").set_index("StockCode")["Description"]
    items = good.groupby("StockCode").agg(price=("UnitPrice", "last"), first=("InvoiceDate", "min"))
    items["title"] = titles.reindex(items.index).fillna("")
    count = len(items)
    no_text = pa.nulls(count, pa.string())
    return pa.table(
        {
            "event_id": [f"item:{code}" for code in items.index],
            "type": ["item"] * count,
            "event_time": _milliseconds(items["first"], shift),
            "user_id": no_text,
            "session_id": no_text,
            "item_id": items.index.to_numpy(),
            "quantity": pa.nulls(count, pa.float64()),
            "price": items["price"].to_numpy(),
            "order_id": no_text,
            "request_id": no_text,
            "title": [str(title).strip().title() for title in items["title"]],
            "category": no_text,
        },
        schema=SHOP_EVENTS_SCHEMA,
    )
