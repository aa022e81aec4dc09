"""`headrace bench`: the options of the benchmarks in infra/bench.

Each prints a table, or one line of JSON with --json, and its limit beside the result.
"""

import json
import logging
from pathlib import Path
from typing import Any

import click

from infra.cli import command_runner


@click.group()
def bench() -> None:
    """Measure this machine."""


_real = click.option("--real", is_flag=True, help="On Kafka and Redis instead of files and SQLite.")
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON line instead of a table.")


@bench.command()
@click.option("--rate", default=200.0, show_default=True, help="Shop events a second beside the probes.")
@click.option("--probes", default=100, show_default=True, help="How many purchases to follow to a changed answer.")
@click.option("--seconds", default=60.0, show_default=True, help="How long the load lasts.")
@_real
@_as_json
def freshness(rate: float, probes: int, seconds: float, real: bool, as_json: bool) -> None:
    """Time from POST /v1/events to a changed /v1/recommend of that user."""
    from infra.bench import freshness as benchmark

    _show(benchmark.run(rate=rate, probes=probes, seconds=seconds, real=real), as_json=as_json)


@bench.command()
@click.option("--rate", default=100.0, show_default=True, help="Transactions a second.")
@click.option("--seconds", default=30.0, show_default=True, help="How long the load lasts.")
@_real
@_as_json
def alerts(rate: float, seconds: float, real: bool, as_json: bool) -> None:
    """Time from a transaction in the event log to its alert at a client of /v1/alerts/stream."""
    from infra.bench import alerts as benchmark

    _show(benchmark.run(rate=rate, seconds=seconds, real=real), as_json=as_json)


@bench.command()
@click.option("--events", default=200_000, show_default=True, help="Events at scale 1.")
@click.option("--scales", default="1", show_default=True, help="Multiples of --events to measure, such as 1,4,16.")
@_real
@click.option("--no-spark", is_flag=True, help="Only the part that comes after Spark.")
@click.option("--no-limits", is_flag=True, help="Leave out the limits beside the result, which take a while.")
@click.option("--batch", default=250_000, show_default=True, help="Most records in one micro-batch.")
@_as_json
def stream(events: int, scales: str, real: bool, no_spark: bool, no_limits: bool, batch: int, as_json: bool) -> None:
    """Events a second from the event log through the Spark job into the online store, and where the time goes."""
    from infra.bench import event_path as benchmark

    for scale in scales.split(","):
        result = command_runner.run(
            benchmark.bench, events * int(scale), real=real, say=lambda line: click.echo(line, err=True),
            spark=not no_spark, limits=not no_limits, batch=batch,
        )  # fmt: skip
        _show(result, as_json=as_json)


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:20} {value}")


@bench.command()
@click.option("--items", default=100_000, show_default=True, help="Items in the catalogue.")
@click.option("--dim", default=64, show_default=True, help="Length of an item vector.")
@click.option("--candidates", default=200, show_default=True, help="About how many candidates a request ranks.")
@click.option("--rate", type=float, help="Open loop: requests a second; latency counts from the intended moment.")
@click.option("--clients", type=int, help="Closed loop: number of clients that each send again once answered.")
@click.option("--seconds", default=10.0, show_default=True, help="How long the load lasts.")
@click.option("--workers", default=2, show_default=True, help="HEADRACE_API_WORKERS of the server.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the simulated shop is kept between runs.")
@_as_json
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
    """Latency and throughput of POST /v1/recommend at a size, beside the times of its kernels."""
    from infra.bench import serve as benchmark

    result = command_runner.run(
        benchmark.run, items=items, width=dim, candidates=candidates, rate=rate, clients=clients, seconds=seconds,
        workers=workers, folder=folder, say=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    _show(result, as_json=as_json)


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
@click.option(
    "--seed", "seeds", type=int, multiple=True, default=(1,), show_default=True, help="Repeat for several seeds."
)
@click.option("--map", "mapping", multiple=True, metavar="FIELD=COLUMN", help="Which column is the user, item or time.")
@click.option("--positive", multiple=True, metavar="COLUMN", help="Keep only rows where this column is above 0.")
@click.option(
    "--header/--no-header", default=True, help="CSV: whether the first line names the columns; otherwise 1, 2, 3."
)
@click.option(
    "--tune", "tune_seconds", default=0.0, show_default=True, help="Seconds that each model may try settings."
)
@click.option("--fit-seconds", default=1200.0, show_default=True, help="A fit stops after this many seconds.")
@_as_json
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
    """Recommendation quality of any model on any data: all items ranked, nothing sampled, baselines always included."""
    # The kernels' loaders log every library that they load.
    logging.disable(logging.INFO)
    from training.benchmark import evaluation

    logging.disable(logging.NOTSET)
    request = evaluation.Request(
        data, protocol, tuple(name for name in models.split(",") if name), seeds, split_at, max_length,
        dict(command_runner.pair(text) for text in mapping), positive, header, tune_seconds, fit_seconds,
    )  # fmt: skip
    command_runner.run(evaluation.run, request, as_json=as_json, say=click.echo)
