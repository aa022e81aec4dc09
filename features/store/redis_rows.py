"""Stores rows of the online store in Redis or Redis Cluster as Feast's Redis store does: a hash per entity.

A script writes each row: it compares its time with the stored one and stores the row whole, in one atomic step.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import mmh3
import numpy as np
from numpy.typing import NDArray
from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

from features.store.codec import encode_varints, entity_keys
from features.store.online import EncodedRows, OnlineStoreError, OnlineView

ROWS_AT_ONCE = 32
"""Rows per call of a script: more would delay readers, fewer cost round trips."""
CALLS_AT_ONCE = 64
KEYS_AT_ONCE = 1_024
PATIENT_SECONDS = 10.0
"""How long a job waits for an answer: a disk that is slow to sync delays Redis for seconds."""

WRITE = """
local function micros(stamp)
  local seconds, nanos, at = 0, 0, 1
  while at <= #stamp do
    local tag, value, scale, byte = string.byte(stamp, at), 0, 1, nil
    repeat
      at = at + 1
      byte = string.byte(stamp, at)
      value, scale = value + (byte % 128) * scale, scale * 128
    until byte < 128
    at = at + 1
    if tag == 8 then seconds = value else nanos = value end
  end
  return seconds * 1000000 + math.floor(nanos / 1000)
end
local count, at, written = tonumber(ARGV[1]), tonumber(ARGV[1]) + 4, 0
for row = 1, #KEYS do
  local event, created, older = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), false
  local stored = redis.call('HMGET', KEYS[row], ARGV[2], ARGV[3])
  if stored[1] then
    local known = micros(stored[1])
    older = event < known or (event == known and stored[2] and created < tonumber(stored[2]))
  end
  if not older then
    local pairs_ = {ARGV[2], ARGV[at + 2], ARGV[3], ARGV[at + 1]}
    for feature = 1, count do
      pairs_[2 * feature + 3], pairs_[2 * feature + 4] = ARGV[3 + feature], ARGV[at + 2 + feature]
    end
    redis.call('HSET', KEYS[row], unpack(pairs_))
    written = written + 1
  end
  at = at + count + 3
end
return written
"""
"""KEYS: entities. ARGV: number of features, field of the event time, field of the created time, the features' fields;
then for each key its event time and created time (microseconds), Feast's bytes of the event time, the values."""

READ = """
local rows = {}
for row = 1, #KEYS do rows[row] = redis.call('HMGET', KEYS[row], unpack(ARGV)) end
return rows
"""
"""Does HMGET of every key: 32 commands cost a client more than a script costs Redis."""

MARK = """
if ARGV[2] and (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""


@dataclass(frozen=True)
class RedisAddress:
    """The address of Redis. `redis://[user:password@]host:port[/db]`; `rediss://` encrypts; `redis+cluster://host:port,...`
    and `rediss+cluster://` name nodes of a cluster. Raises ValueError."""

    nodes: tuple[tuple[str, int], ...]
    cluster: bool = False
    tls: bool = False
    database: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> "RedisAddress":
        invalid = ValueError("HEADRACE_REDIS_URL is not redis://host:port/db or redis+cluster://host:port,host:port")
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "redis+cluster", "rediss+cluster"):
            raise invalid
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        try:
            nodes = tuple(
                (host, int(port or 6379)) for host, _, port in (node.rpartition(":") for node in hosts.split(","))
            )
            database = int(parts.path.strip("/") or 0)
        except ValueError:
            raise invalid from None
        cluster = parts.scheme.endswith("cluster")
        if not all(host for host, _ in nodes) or (len(nodes) > 1 and not cluster) or (cluster and database):
            raise invalid
        if "," in unquote(password):
            raise ValueError("a Redis password with a comma cannot be given to Feast; choose another")
        return cls(
            nodes, cluster, parts.scheme.startswith("rediss"), database, unquote(user) or None,
            unquote(password) or None,
        )  # fmt: skip

    def __str__(self) -> str:
        return ",".join(f"{host}:{port}" for host, port in self.nodes)

    def feast_string(self, *, timeout_seconds: float) -> str:
        """Returns the connection string of Feast's RedisOnlineStoreConfig."""
        options: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
        if self.database:
            options["db"] = self.database
        if self.tls:
            options["ssl"] = "true"
        options |= {name: f'"{text}"' for name, text in (("username", self.user), ("password", self.password)) if text}
        return ",".join([str(self), *(f"{name}={value}" for name, value in options.items())])

    def connect(self, *, timeout_seconds: float) -> Any:
        """Returns a client that connects on first use. It retries a broken connection once, but not a silent server."""
        options: dict[str, Any] = {
            "username": self.user, "password": self.password, "ssl": self.tls, "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        }  # fmt: skip
        if self.cluster:
            nodes = [ClusterNode(*node) for node in self.nodes]  # type: ignore[no-untyped-call]
            return RedisCluster(startup_nodes=nodes, **options)
        host, port = self.nodes[0]
        return Redis(host=host, port=port, db=self.database, **options)


class RedisRows:
    """Implements features.store.online.OnlineRows. An object serves all threads."""

    def __init__(self, address: RedisAddress, *, project: str, timeout_seconds: float) -> None:
        self._address = address
        self._project = project
        self._timeouts = {False: timeout_seconds, True: max(timeout_seconds, PATIENT_SECONDS)}
        self._clients: dict[bool, Any] = {}

    def read(self, view: OnlineView, ids: Sequence[str], *, patient: bool) -> list[Sequence[bytes | None]]:
        fields = [_field(view, name) for name in view.dtypes]
        rows: list[list[bytes | None]] = []
        with self._client(patient=patient) as client:
            for keys in _parts(entity_keys(view.join_key, ids, project=self._project), KEYS_AT_ONCE):
                if len(keys) == 1:
                    rows.append(client.hmget(keys[0], fields))
                    continue
                stored: dict[int, list[bytes | None]] = {}
                pipe, calls = client.pipeline(transaction=False), self._calls(keys)
                for indices in calls:
                    pipe.execute_command("EVAL", READ, len(indices), *(keys[index] for index in indices), *fields)
                for indices, answer in zip(calls, pipe.execute(), strict=True):
                    stored.update(zip(indices, answer, strict=True))
                rows += [stored[index] for index in range(len(keys))]
        return list(zip(*rows, strict=True)) if rows else [() for _ in fields]

    def write(self, view: OnlineView, rows: EncodedRows) -> None:
        shared = [
            len(rows.values),
            f"_ts:{view.name}",
            f"_created:{view.name}",
            *(_field(view, name) for name in view.dtypes),
        ]
        keys = entity_keys(view.join_key, rows.ids, project=self._project)
        columns = [rows.event_us.tolist(), rows.created_us.tolist(), _stamps(rows.event_us), *rows.values]
        with self._client(patient=True) as client:
            for calls in _parts(self._calls(keys), CALLS_AT_ONCE):
                pipe = client.pipeline(transaction=False)
                for indices in calls:
                    values = itertools.chain.from_iterable([column[index] for column in columns] for index in indices)
                    call_keys = [keys[index] for index in indices]
                    pipe.execute_command("EVAL", WRITE, len(call_keys), *call_keys, *shared, *values)
                pipe.execute()

    def _calls(self, keys: list[bytes]) -> list[Sequence[int]]:
        """Groups row indices into calls of a script: in a cluster, a call may touch only one hash slot."""
        if not self._address.cluster:
            return list(_parts(range(len(keys)), ROWS_AT_ONCE))
        slots: dict[int, list[int]] = {}
        for row, key in enumerate(keys):
            slots.setdefault(key_slot(key), []).append(row)
        return [part for rows in slots.values() for part in _parts(rows, ROWS_AT_ONCE)]

    def epoch(self) -> str:
        with self._client(patient=True) as client:
            if not self._address.cluster:
                return str(client.info("server")["run_id"])
            nodes = client.info("server", target_nodes=client.PRIMARIES)
            return " ".join(sorted(str(node["run_id"]) for node in nodes.values()))

    def marks(self) -> set[str]:
        with self._client(patient=True) as client:
            return {(client.get(key) or b"").decode() for key in self._mark_keys(client)}

    def mark(self, value: str, *, after: str | None) -> bool:
        arguments = [value] if after is None else [value, after]
        with self._client(patient=True) as client:
            return all([client.eval(MARK, 1, key, *arguments) for key in self._mark_keys(client)])

    def _mark_keys(self, client: Any) -> list[str]:
        """Returns a key on every primary, because each may lose its own last writes."""
        if not self._address.cluster:
            return [f"{self._project}:mark"]
        first_slots: dict[str, int] = {}
        for (start, _), owner in _slot_ranges(client):
            first_slots[owner] = min(start, first_slots.get(owner, start))
        return [f"{self._project}:mark:{{{_tag(slot)}}}" for slot in first_slots.values()]

    @contextmanager
    def _client(self, *, patient: bool) -> Iterator[Any]:
        """Yields a client and turns its failures into OnlineStoreError."""
        try:
            client = self._clients.get(patient)
            if client is None:
                client = self._clients[patient] = self._address.connect(timeout_seconds=self._timeouts[patient])
            yield client
        except (RedisError, RedisClusterException, OSError) as error:
            raise OnlineStoreError(
                f"cannot reach Redis at {self._address} ({type(error).__name__}: {error}); start it with `make up` or "
                "unset HEADRACE_REDIS_URL"
            ) from error


def _slot_ranges(client: Any) -> list[tuple[tuple[int, int], str]]:
    return [(slots, "{}:{}".format(*node["primary"])) for slots, node in client.cluster_slots().items()]


_TAGS: dict[int, str] = {}


def _tag(slot: int) -> str:
    """Returns a short text that hashes to a slot of the cluster."""
    if slot not in _TAGS:
        _TAGS[slot] = next(str(number) for number in itertools.count() if key_slot(str(number).encode()) == slot)
    return _TAGS[slot]


def _field(view: OnlineView, feature: str) -> bytes:
    """Returns the hash field of a feature: Feast's murmur3 of its full name."""
    return mmh3.hash(f"{view.name}:{feature}", signed=False).to_bytes(4, "little")


def _stamps(event_us: NDArray[np.int64]) -> list[bytes]:
    """Encodes event times as bytes of protobuf's Timestamp."""
    encoded = []
    for part in (event_us // 1_000_000, event_us % 1_000_000 * 1_000):
        data, sizes = encode_varints(part)
        ends = np.cumsum(sizes).tolist()
        whole = data.tobytes()
        encoded.append([whole[start:end] for start, end in zip([0, *ends], ends, strict=False)])
    return [
        b"\x08" + seconds + (b"\x10" + nanos if nanos != b"\0" else b"")
        for seconds, nanos in zip(*encoded, strict=True)
    ]


def _parts(rows: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
