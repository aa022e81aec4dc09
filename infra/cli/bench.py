"""`headrace bench`: measures this machine; infra/bench has what measures.

Each prints its limit beside the result, and one line of JSON with --json.
"""

import json
import logging
from pathlib import Path
from typing import Any

import click

from infra.cli import verb_runner


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.option("--rate", default=200.0, show_default=True, help="Shop events a second beside the probes.")
@click.option("--probes", default=100, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--real", is_flag=True, help="On Kafka and Redis instead of files and SQLite.")
@click.option("--json", "as_json", is_flag=True)
def freshness(rate: float, probes: int, seconds: float, real: bool, as_json: bool) -> None:
    """From POST /v1/events to a changed /v1/recommend of that user."""
    from infra.bench import freshness as measured

    _show(measured.run(rate=rate, probes=probes, seconds=seconds, real=real), as_json=as_json)


@bench.command()
@click.option("--rate", default=100.0, show_default=True, help="Transactions a second.")
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--real", is_flag=True, help="On Kafka and Redis instead of files and SQLite.")
@click.option("--json", "as_json", is_flag=True)
def alerts(rate: float, seconds: float, real: bool, as_json: bool) -> None:
    """From a transaction in the event log to its alert at a client of /v1/alerts/stream."""
    from infra.bench import alerts as measured

    _show(measured.run(rate=rate, seconds=seconds, real=real), as_json=as_json)


@bench.command()
@click.option("--events", default=200_000, show_default=True, help="Events at 1x.")
@click.option("--scales", default="1", show_default=True, help="Multiples of it, as 1,4,16.")
@click.option("--real", is_flag=True, help="On Kafka and Redis instead of files and SQLite.")
@click.option("--no-spark", is_flag=True, help="Only what comes behind Spark.")
@click.option("--no-limits", is_flag=True, help="Without the limits beside the result, which take their time.")
@click.option("--batch", default=250_000, show_default=True, help="Most records in one micro-batch.")
@click.option("--json", "as_json", is_flag=True)
def stream(events: int, scales: str, real: bool, no_spark: bool, no_limits: bool, batch: int, as_json: bool) -> None:
    """Events a second from the event log through the Spark job into the online store, and where the time goes."""
    from infra.bench import event_path as measured

    for scale in scales.split(","):
        found = verb_runner.run(
            measured.bench, events * int(scale), real=real, say=lambda line: click.echo(line, err=True),
            spark=not no_spark, limits=not no_limits, batch=batch,
        )  # fmt: skip
        _show(found, as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name:20} {value}")


@bench.command()
@click.option("--items", default=100_000, show_default=True, help="Items in the catalogue.")
@click.option("--dim", default=64, show_default=True, help="Length of an item vector.")
@click.option("--candidates", default=200, show_default=True, help="About how many candidates a request ranks.")
@click.option("--rate", type=float, help="Open loop: so many requests a second, latency from the intended moment.")
@click.option("--clients", type=int, help="Closed loop: so many clients, each asking again once answered.")
@click.option("--seconds", default=10.0, show_default=True, help="How long the load lasts.")
@click.option("--workers", default=2, show_default=True, help="HEADRACE_API_WORKERS of the server.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the simulated shop is kept between runs.")
@click.option("--json", "as_json", is_flag=True)
def serve(
    items: int,
    dim: int,
    candidates: int,
    rate: float | None,
    clients: int | None,
    seconds: float,
    workers: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Latency and throughput of POST /v1/recommend at a size, beside the kernels' own times."""
    from infra.bench import serve as measured

    found = verb_runner.run(
        measured.run, items=items, width=dim, candidates=candidates, rate=rate, clients=clients, seconds=seconds,
        workers=workers, folder=folder, say=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    _show(found, as_json=as_json)


@bench.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="A text file of `user item item ...` lines, or a CSV or Parquet table.",
)
@click.option(
    "--protocol", type=click.Choice(["leave-one-out", "time-split"]), default="leave-one-out", show_default=True
)
@click.option("--split-at", help="time-split: the moment, for example 2011-11-09 (UTC).")
@click.option("--max-length", type=click.IntRange(min=1), help="Latest items that sequence models read.")
@click.option(
    "--model",
    "models",
    default="sequence",
    show_default=True,
    help="NAME[,NAME...]: sequence, sequence_encoder; peers als, bpr, rectools_sasrec, lightgbm.",
)
@click.option("--seed", "seeds", type=int, multiple=True, default=(1,), show_default=True, help="Once for each seed.")
@click.option("--map", "mapping", multiple=True, metavar="FIELD=COLUMN", help="Which column is the user, item or time.")
@click.option("--positive", multiple=True, metavar="COLUMN", help="Only rows where this column is above 0.")
@click.option("--header/--no-header", default=True, help="CSV: whether the first line names the columns, else 1, 2, 3.")
@click.option(
    "--tune", "tune_seconds", default=0.0, show_default=True, help="Seconds that each model may try settings."
)
@click.option("--fit-seconds", default=1200.0, show_default=True, help="A fit stops after this long.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line instead of a table.")
def quality(
    data: Path,
    protocol: str,
    split_at: str | None,
    max_length: int | None,
    models: str,
    seeds: tuple[int, ...],
    mapping: tuple[str, ...],
    positive: tuple[str, ...],
    header: bool,
    tune_seconds: float,
    fit_seconds: float,
    as_json: bool,
) -> None:
    """Recommendation quality of any model on any data: all items ranked, nothing sampled, floors always beside."""
    # The kernels' loaders announce every library that they load.
    logging.disable(logging.INFO)
    from training.benchmark import evaluation as judge

    logging.disable(logging.NOTSET)
    request = judge.Request(
        data, protocol, tuple(name for name in models.split(",") if name), seeds, split_at, max_length,
        dict(verb_runner.pair(text) for text in mapping), positive, header, tune_seconds, fit_seconds,
    )  # fmt: skip
    verb_runner.run(judge.run, request, as_json=as_json, say=click.echo)
