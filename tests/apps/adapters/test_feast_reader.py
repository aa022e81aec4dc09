"""The online store as the API sees it: away, hanging, empty, and back again."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from apps.adapters.feast_reader import FeastReader
from features.contract import columns
from features.history import arrays
from features.store import feature_store, views
from features.store.online import OnlineStoreError
from infra.local import redis_server
from infra.local.redis_server import RedisServer
from infra.settings import Settings
from tests.contracts.test_online_store import row, table


def test_a_missing_store_is_an_error_that_says_what_fills_it_and_is_opened_once_it_exists(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    reader = FeastReader(settings)
    with pytest.raises(OnlineStoreError, match="`headrace features` fills it"):
        reader.user_histories(["ann"])
    assert not settings.feast_dir.exists()
    feature_store.write_online(feature_store.open_store(settings), views.USER_HISTORY, table(row("ann", times=[1])))
    assert reader.user_histories(["ann"])[0][columns.TIMES] == [1]


def test_what_is_not_stored_is_empty(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    feature_store.open_store(settings)
    reader = FeastReader(settings)
    items = reader.item_histories(["a", "b"])
    assert (items.lengths.tolist(), set(items.entries)) == ([0, 0], set(arrays.ITEM_COLUMNS))
    payments, (taken, frauds) = reader.card_histories(["c"]), reader.terminal_histories(["t", "u"])
    assert (payments.lengths.tolist(), set(payments.entries)) == ([0], set(arrays.CARD_COLUMNS))
    assert (taken.lengths.tolist(), set(taken.entries)) == ([0, 0], set(arrays.TERMINAL_COLUMNS))
    assert (frauds.lengths.tolist(), set(frauds.entries)) == ([0, 0], set(arrays.FRAUD_COLUMNS))


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server")
def test_a_redis_that_comes_later_hangs_and_returns(tmp_path: Path) -> None:
    server = RedisServer(Settings(data_dir=tmp_path / "redis", redis_port=19240))
    reader = FeastReader(
        Settings(data_dir=tmp_path, redis_url=redis_server.url(server.settings), redis_timeout_milliseconds=150)
    )
    with pytest.raises(OnlineStoreError, match="cannot reach Redis"):
        reader.user_histories(["ann"])
    with server:
        assert _within(reader, seconds=3)
        server.send(signal.SIGSTOP)
        slow = 0
        for _ in range(50):
            started = time.perf_counter()
            with pytest.raises(OnlineStoreError):
                reader.user_histories(["ann"])
            slow += time.perf_counter() - started > 0.1
        assert slow <= 5  # the others failed at once
        server.send(signal.SIGCONT)
        assert _within(reader, seconds=3)


def _within(reader: FeastReader, *, seconds: float) -> bool:
    """Says whether the reader answers within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            reader.user_histories(["ann"])
            return True
        except OnlineStoreError:
            time.sleep(0.02)
    return False
