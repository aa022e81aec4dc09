"""The online store on a Redis Cluster of three nodes on this machine: its guarantees, and what a dead node costs."""

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from features.contract import columns
from features.history import arrays
from features.store import feature_store, views
from features.store.online import OnlineStoreError
from infra.local.redis_server import RedisServer
from infra.settings import Settings
from tests.contracts.test_online_store import row, table, through_feast

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server"),
]

VIEW = views.USER_HISTORY
PORTS = (19230, 19231, 19232)  # a node talks to the others on its port + 10,000
BOUND_MILLISECONDS = 300
USERS = [f"user-{number}" for number in range(300)]


@dataclasses.dataclass
class Cluster:
    nodes: list[RedisServer]
    settings: Settings


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
    nodes = [RedisServer(Settings(data_dir=folder / str(port), redis_port=port), *options) for port in PORTS]
    try:
        for node in nodes:
            node.start()
        addresses = [f"127.0.0.1:{port}" for port in PORTS]
        created = subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "All 16384 slots covered" in created.stdout, created.stdout + created.stderr
        time.sleep(1.5)  # until all nodes know each other
        yield Cluster(
            nodes,
            Settings(
                data_dir=folder / "data",
                redis_url=f"redis+cluster://{','.join(addresses)}",
                redis_timeout_milliseconds=BOUND_MILLISECONDS,
            ),
        )
    finally:
        for node in nodes:
            node.kill()


@pytest.fixture
def feast(cluster: Cluster) -> feature_store.Store:
    return feature_store.open_store(cluster.settings)


def test_rows_are_spread_and_read_as_feast_reads_them(cluster: Cluster, feast: feature_store.Store) -> None:
    lists = {columns.TIMES: [1, 2], columns.ITEMS: ["a", "käse"], columns.PRICES: [0.5, 2.5]}
    feature_store.write_online(feast, VIEW, table(*(row(user, **lists) for user in USERS)))
    assert feature_store.online_rows(feast, VIEW, USERS) == through_feast(feast, *USERS)
    assert through_feast(feast, USERS[7]) == [{**dict.fromkeys(arrays.USER_COLUMNS), **lists}]
    client = feast.online.rows._address.connect(timeout_seconds=5)  # type: ignore[attr-defined]
    assert all(client.dbsize(target_nodes=node) > 50 for node in client.get_primaries())


def test_an_older_row_never_wins(feast: feature_store.Store) -> None:
    for seconds, number in ((5, 5), (1, 1), (9, 9), (3, 3)):
        feature_store.write_online(feast, VIEW, table(*(row(user, seconds, times=[number]) for user in USERS[:40])))
    assert {tuple(stored[columns.TIMES]) for stored in feature_store.online_rows(feast, VIEW, USERS[:40])} == {(9,)}


def test_every_node_has_its_own_mark(feast: feature_store.Store) -> None:
    rows = feast.online.rows
    assert rows.marks() == {""}
    assert rows.mark("one", after="")
    assert rows.marks() == {"one"}
    client = rows._address.connect(timeout_seconds=5)  # type: ignore[attr-defined]
    keys = rows._mark_keys(client)  # type: ignore[attr-defined]
    assert len({client.get_node_from_key(key).name for key in keys}) == len(PORTS)
    assert client.delete(keys[1]) == 1  # a node that lost it
    assert rows.marks() == {"one", ""}
    assert not rows.mark("two", after="one")
    assert rows.mark("three", after=None)
    assert rows.marks() == {"three"}


def test_a_dead_node_costs_only_its_own_keys_and_no_more_than_the_bound(
    cluster: Cluster, feast: feature_store.Store
) -> None:
    recent = datetime(2026, 11, 22, 12, 1, tzinfo=UTC).timestamp() - datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
    feature_store.write_online(feast, VIEW, table(*(row(user, recent, times=[4]) for user in USERS)))
    before = feast.online.rows.epoch()
    cluster.nodes[1].kill()
    feast.online._clock = lambda: float("inf")  # no read is skipped because earlier ones failed
    alive, failed, slowest = 0, 0, 0.0
    for user in USERS[:90]:
        started = time.perf_counter()
        try:
            assert feature_store.online_rows(feast, VIEW, [user])[0][columns.TIMES] == [4]
            alive += 1
        except OnlineStoreError:
            failed += 1
        slowest = max(slowest, time.perf_counter() - started)
    assert 30 <= alive <= 80
    assert 10 <= failed <= 60
    assert slowest < 5 * BOUND_MILLISECONDS / 1000
    with pytest.raises(OnlineStoreError, match="cannot reach Redis"):
        feature_store.write_online(feast, VIEW, table(*(row(user, 2 * recent, times=[5]) for user in USERS)))
    cluster.nodes[1].start()
    deadline = time.monotonic() + 20
    while True:
        try:
            feature_store.write_online(feast, VIEW, table(*(row(user, 2 * recent, times=[5]) for user in USERS)))
            break
        except OnlineStoreError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert all(stored[columns.TIMES] == [5] for stored in feature_store.online_rows(feast, VIEW, USERS))
    assert feast.online.rows.epoch() != before


def test_a_cluster_that_does_not_exist_gives_a_clear_error(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url="redis+cluster://127.0.0.1:19239", redis_timeout_milliseconds=200)
    with pytest.raises(OnlineStoreError, match=r"cannot reach Redis at 127\.0\.0\.1:19239"):
        feature_store.online_rows(feature_store.open_store(settings), VIEW, ["ann"])
