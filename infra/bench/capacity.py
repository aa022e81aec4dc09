"""Computes what 10^4, 10^6 and 10^8 users need: machines, partitions, memory and money.

    python -m infra.bench.capacity            prints the tables of docs/scale.md (a test compares them)

`Measured` holds unit costs, each with the command that measured it. `Assumed` holds what nobody can measure for you:
change it to your own shop and your own prices. The model is linear: it says how much would be needed if nothing broke.
What breaks is in docs/scale.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

DAY_SECONDS = 86_400
GIBIBYTE = 2**30
MONTH_HOURS = 730


def measured(value: float, *, unit: str, how: str) -> float:
    """Declares a field of `Measured`."""
    declared: float = field(default=value, metadata={"unit": unit, "how": how})
    return declared


REQUEST_COST = "infra/bench/request_cost.py on the data of `make demo SMALL=1` (699 users, 3,177 items), SQLite"
EVENT_PATH = "headrace bench stream --real --events 800000"
BEHIND_SPARK = "headrace bench stream --real --events 400000 --no-spark"
DEMO = "README: `make demo`, 443,174 records, 2 cores"


@dataclass(frozen=True)
class Measured:
    """Unit costs: orders of magnitude, of one noisy run each on 2 shared cores in November 2026."""

    recommend_cpu_ms: float = measured(8.1, unit="ms of CPU a request", how=REQUEST_COST)
    payment_cpu_ms: float = measured(5.2, unit="ms of CPU a scored payment", how=REQUEST_COST)
    event_cpu_ms: float = measured(3.8, unit="ms of CPU an event, sent alone", how=REQUEST_COST)
    event_batched_cpu_ms: float = measured(0.083, unit="ms of CPU an event, 100 in a POST", how=REQUEST_COST)
    api_memory_mib: float = measured(303, unit="MiB an API process", how=REQUEST_COST)
    shop_event_bytes: float = measured(175, unit="bytes in the log", how=REQUEST_COST)
    impression_bytes: float = measured(2_061, unit="bytes in the log, 20 items shown", how=REQUEST_COST)
    payment_bytes: float = measured(616, unit="bytes in the log, payment and decision", how=REQUEST_COST)
    stream_cpu_ms: float = measured(0.030, unit="ms of CPU an event, driver and executors", how=EVENT_PATH)
    driver_cpu_ms: float = measured(0.014, unit="ms of CPU an event, in the one driver", how=BEHIND_SPARK)
    online_row_bytes: float = measured(963, unit="bytes of Redis a row of 20 events", how=BEHIND_SPARK)
    rebuild_core_ms: float = measured(0.39, unit="core-ms an event of the whole history", how=DEMO + ", step 2")
    train_core_ms: float = measured(0.41, unit="core-ms an event of the window", how=DEMO + ", step 3")


@dataclass(frozen=True)
class Assumed:
    """A shop and its prices. None of it is measured, and the prices are no vendor's."""

    daily_share: float = 0.10
    """Share of the users who visit on a day."""
    events_per_visit: float = 20
    events_in_a_post: int = 1
    recommends_per_visit: float = 8
    payments_per_visit: float = 0.3
    peak_factor: float = 3
    """Busiest second divided by the average one."""
    log_days: float = 400
    train_days: float = 90
    copies: int = 3
    target_load: float = 0.6
    """Load of a core at the peak that the autoscaler aims at."""
    events_per_partition: float = 1_000
    """Events a second that one reader is planned to take from one partition."""
    files_per_batch: float = 3
    """Parquet files that a micro-batch writes: 2 for a lone event, 6 for events of all types."""
    rows_per_user: float = 1.2
    """Rows in the online store: users, and their cards and terminals."""
    core_hour: float = 0.04
    memory_gib_month: float = 3.0
    disk_gib_month: float = 0.08


@dataclass(frozen=True)
class Need:
    """What a number of users needs: rates are those of the peak second, cores are busy to the target load."""

    users: int
    events: float
    recommends: float
    payments: float
    records: float
    api_cores: int
    api_memory_gib: float
    scorers: int
    partitions: int
    log_gib: float
    stream_cores: float
    driver_load: float
    """Load of one core by the part of the feature job that cannot be divided. At 1 it no longer keeps up."""
    redis_gib: float
    rebuild_core_hours: float
    train_core_hours: float
    files_per_day: float
    money: float


def need(users: int, cost: Measured, given: Assumed) -> Need:
    """Returns what `users` need by these costs and assumptions."""
    visits = users * given.daily_share
    peak = given.peak_factor / DAY_SECONDS
    events, recommends, payments = (
        visits * each * peak for each in (given.events_per_visit, given.recommends_per_visit, given.payments_per_visit)
    )
    each_event = cost.event_cpu_ms if given.events_in_a_post == 1 else cost.event_batched_cpu_ms
    api_ms = recommends * cost.recommend_cpu_ms + events * each_event
    api_cores = max(2, math.ceil(api_ms / 1000 / given.target_load))
    scorers = max(1, math.ceil(payments * cost.payment_cpu_ms / 1000 / given.target_load))
    records = events + recommends + payments
    stored = given.events_per_visit * cost.shop_event_bytes + given.recommends_per_visit * cost.impression_bytes
    stored += given.payments_per_visit * cost.payment_bytes
    log_gib = visits * stored * given.log_days * given.copies / GIBIBYTE
    redis_gib = users * given.rows_per_user * cost.online_row_bytes / GIBIBYTE
    daily = visits * given.events_per_visit
    rebuild = daily * given.log_days * cost.rebuild_core_ms / 3.6e6
    train = daily * given.train_days * cost.train_core_ms / 3.6e6
    stream_cores = records * cost.stream_cpu_ms / 1000 / given.target_load
    batches = min(2.0, records / given.peak_factor) * DAY_SECONDS
    memory = api_cores * cost.api_memory_mib / 1024 + redis_gib * 2
    # Nightly jobs cost while they run. Kafka has 3 brokers of 2 cores, or one for each 500 GiB of a larger log.
    brokers = 6 if log_gib < 1_500 else math.ceil(log_gib / 500) * 2
    cores = api_cores + scorers + math.ceil(stream_cores) + brokers
    nightly = (rebuild + train) * 30
    money = (cores * MONTH_HOURS + nightly) * given.core_hour
    money += memory * given.memory_gib_month + log_gib * given.disk_gib_month
    return Need(
        users=users, events=events, recommends=recommends, payments=payments, records=records,
        api_cores=api_cores, api_memory_gib=api_cores * cost.api_memory_mib / 1024, scorers=scorers,
        partitions=max(6, scorers, 2 ** math.ceil(math.log2(max(1, records / given.events_per_partition)))),
        log_gib=log_gib, stream_cores=stream_cores, driver_load=records * cost.driver_cpu_ms / 1000,
        redis_gib=redis_gib, rebuild_core_hours=rebuild, train_core_hours=train,
        files_per_day=batches * given.files_per_batch, money=money,
    )  # fmt: skip


ROWS: tuple[tuple[str, Callable[[Need], float]], ...] = (
    ("events/s at the peak", attrgetter("events")),
    ("recommendations/s at the peak", attrgetter("recommends")),
    ("payments/s at the peak", attrgetter("payments")),
    ("API: cores, one process each", attrgetter("api_cores")),
    ("API: memory, GiB", attrgetter("api_memory_gib")),
    ("scorers, a core each", attrgetter("scorers")),
    ("Kafka: partitions of a topic", attrgetter("partitions")),
    ("Kafka: log of 400 days, 3 copies, GiB", attrgetter("log_gib")),
    ("Redis: rows, GiB", attrgetter("redis_gib")),
    ("feature job: cores", attrgetter("stream_cores")),
    ("feature job: load of the one driver", attrgetter("driver_load")),
    ("Parquet files a day", attrgetter("files_per_day")),
    ("nightly tables over all history, core-hours", attrgetter("rebuild_core_hours")),
    ("nightly training on 90 days, core-hours", attrgetter("train_core_hours")),
    ("money a month, at the prices below", attrgetter("money")),
)
SIZES = (10**4, 10**6, 10**8)


def number(value: float) -> str:
    """Rounds to two significant digits, the precision of these estimates."""
    if value < 0.01:
        return "< 0.01"
    if value >= 100:
        size = 10 ** (math.floor(math.log10(value)) - 1)
        return f"{round(value / size) * size:,}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def table(cost: Measured, given: Assumed) -> str:
    """Returns ROWS by SIZES as a Markdown table."""
    needs = [need(users, cost, given) for users in SIZES]
    lines = ["| | 10⁴ users | 10⁶ users | 10⁸ users |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(number(value(column)) for column in needs)} |" for name, value in ROWS]
    return "\n".join(lines)


def inputs() -> str:
    """Returns the measured costs as a Markdown table."""
    lines = ["| measured | | by |", "|---|---|---|"]
    for cost in Measured.__dataclass_fields__.values():
        lines.append(f"| `{cost.name}` | {cost.default:,} {cost.metadata['unit']} | {cost.metadata['how']} |")
    return "\n".join(lines)


def guesses() -> str:
    """Returns the assumptions as a Markdown table."""
    lines = ["| assumed | |", "|---|---|"]
    lines += [f"| `{guess.name}` | {guess.default:,} |" for guess in Assumed.__dataclass_fields__.values()]
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join((inputs(), guesses(), table(Measured(), Assumed()))))
