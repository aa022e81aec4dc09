"""The command line: one command for each step, each a lazy call of one package's entry point, and no logic.

What Airflow, the Makefile and a person type is the same. `headrace --help` imports none of the packages.
"""

import logging
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from infra.cli.bench import bench
from infra.cli.command_runner import CommandGroup, pair, run, settings
from infra.observability import logs
from infra.settings import unknown_variables
from infra.version import version


def _stop_on_signal() -> threading.Event:
    """Returns an event that Ctrl-C and a terminate signal set."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), message="headrace %(version)s")
def cli() -> None:
    """Headrace: one stream of events in; recommendations, fraud alerts and A/B reports out.

    \b
    A first look:      headrace demo --small
    Your own data:     headrace import FILE --map user_id=customer ...
                       headrace features, train, serve, stream
    Settings come from HEADRACE_... variables (docs/settings.md).
    """
    if not sys.warnoptions:
        # Deprecations inside the libraries are for us, in the tests, and not for whoever runs a command.
        logging.captureWarnings(capture=True)
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for line in unknown_variables():
        click.echo(line, err=True)
    logs.set_up(settings())


@cli.command()
def doctor() -> None:
    """Say what is missing on this machine, and how to get it."""
    from infra.cli.doctor import check, exit_code, render

    findings = check(settings())
    click.echo(render(findings))
    sys.exit(exit_code(findings))


@cli.command("import")
@click.argument("source", metavar="online-retail|simulated|FILE")
@click.option("--data", type=click.Path(path_type=Path), help="Where the Online Retail data is, instead of looking.")
@click.option("--customers", type=int, help="Online Retail or simulated: only that many customers.")
@click.option("--hold-out-days", type=int, default=0, show_default=True, help="Keep the last days aside for a replay.")
@click.option("--map", "mapping", multiple=True, metavar="FIELD=COLUMN", help="FILE: which column holds a field.")
@click.option("--type", "kind", help="FILE: event type of every row, where no column has it.")
def import_(
    source: str,
    data: Path | None,
    customers: int | None,
    hold_out_days: int,
    mapping: tuple[str, ...],
    kind: str | None,
) -> None:
    """Bring history into the event log: Online Retail, the simulated shop, or your own CSV, Parquet or JSONL file."""
    from apps.commands import import_events

    run(
        import_events.run, settings(), source=source, data=data, customers=customers, hold_out_days=hold_out_days,
        mapping=dict(pair(text) for text in mapping), event_type=kind, now=datetime.now(UTC), say=click.echo,
    )  # fmt: skip


@cli.command()
@click.option("--cards", default=1500, show_default=True)
@click.option("--terminals", default=1000, show_default=True)
@click.option("--days", default=75, show_default=True)
@click.option("--live-days", default=2, show_default=True, help="Latest days kept aside for a replay.")
@click.option("--seed", default=7, show_default=True)
def simulate(cards: int, terminals: int, days: int, live_days: int, seed: int) -> None:
    """Write simulated card payments with known frauds into the event log (a simulator, for load and ground truth)."""
    from apps.commands import simulate_payments

    run(
        simulate_payments.run, settings(), cards=cards, terminals=terminals, days=days, live_days=live_days, seed=seed,
        now=datetime.now(UTC), say=click.echo,
    )  # fmt: skip


@cli.command()
@click.option("--refill-online", is_flag=True, help="Only rewrite the online store from the offline tables.")
def features(refill_online: bool) -> None:
    """Turn everything in the event log into features, and stop (Spark, Feast)."""
    from streaming import job

    run(job.refill_online if refill_online else job.catch_up, settings(), say=click.echo)


@cli.command()
def stream() -> None:
    """Turn new events into features as they come, until stopped (Spark, Feast)."""
    from streaming import job

    run(job.run, settings(), stop=_stop_on_signal())


@cli.command()
@click.argument("config", default="standard", type=click.Choice(["standard", "small"]))
@click.option("--wait", is_flag=True, help="First wait until a feature job has made the tables to learn from.")
@click.option(
    "--search",
    "search_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="First search that long for better settings of two-tower and ranker, by their validation values.",
)
@click.option(
    "--settings",
    "file",
    type=click.Path(path_type=Path),
    help="JSON with settings that replace the configuration's: a run's record in runs/, or a part of its config.",
)
def train(config: str, *, wait: bool, search_seconds: float | None, file: Path | None) -> None:
    """Train the models, compare them with their baselines, and publish the release (TorchRec, Faiss)."""
    from training import train as training
    from training.config_file import read_config
    from training.configs import CONFIGS

    chosen = CONFIGS[config]()
    if file:
        chosen = run(read_config, file, base=chosen)
    run(
        training.run, settings(), chosen, now=datetime.now(UTC), say=click.echo, wait=wait,
        search_seconds=search_seconds,
    )  # fmt: skip


@cli.command()
def releases() -> None:
    """List the published releases; * marks the one that is served."""
    from features.contract.release import current_version
    from training.release.publish import versions

    folder = settings().releases_dir
    current = current_version(folder)
    published = versions(folder)
    for release in published:
        click.echo(f"{'*' if release == current else ' '} {release}")
    if not published:
        click.echo(f"there is no release in {folder} yet: `headrace train` publishes the first")


@cli.command()
def rollback() -> None:
    """Serve the release before the current one."""
    from training.release import publish

    click.echo(f"serving {run(publish.rollback, settings().releases_dir)} from now on")


@cli.command()
def serve() -> None:
    """Run the API and the console, in HEADRACE_API_WORKERS processes."""
    from apps.http import server as api

    run(api.run, settings())


@cli.command()
def score() -> None:
    """Score the transactions that arrive in the event log, until stopped."""
    from apps.wiring import run_scorer

    run(run_scorer, settings(), stop=_stop_on_signal())


@cli.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long it takes.")
@click.option("--visits", type=int, help="At most that many visits, spread evenly.")
@click.option("--orders", "visits", type=int, hidden=True)
@click.option("--surface", default="home", show_default=True)
def traffic(seconds: float, visits: int | None, surface: str) -> None:
    """Send what was held back as live traffic through the public API."""
    from apps.commands import traffic as held_out

    run(held_out.run, settings(), seconds=seconds, visits=visits, surface=surface, say=click.echo)


@cli.command("dead-letters")
@click.option(
    "--export", "target", type=click.Path(path_type=Path), help="Write them to this JSONL file, to be mended."
)
@click.option("--reason", help="Only letters with this reason.")
@click.option("--samples", default=1, show_default=True, help="How many of each reason to show.")
def dead_letters(target: Path | None, reason: str | None, samples: int) -> None:
    """Show what could not be used, by reason, or export it to be mended and replayed."""
    from apps.commands import dead_letters as letters

    if target is None:
        run(letters.show, settings(), reason=reason, samples=samples, say=click.echo)
    else:
        run(letters.export, settings(), target, reason=reason, say=click.echo)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def replay(file: Path) -> None:
    """Put mended dead letters back: FILE is what `dead-letters --export` wrote, with its values corrected."""
    from apps.commands import dead_letters as letters

    if run(letters.replay, settings(), file, now=datetime.now(UTC), say=click.echo):
        sys.exit(1)


@cli.command()
def exposures() -> None:
    """Join impressions to their outcomes for the experiment reports (Spark)."""
    from streaming import job

    rows = run(job.join_exposures, settings())
    click.echo(f"{rows:,} rows of experiment units")


@cli.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="As GET /v1/experiments/KEY/report answers.")
def report(key: str, *, as_json: bool) -> None:
    """Print an experiment's report."""
    from apps.wiring import print_report

    run(print_report, settings(), key, say=click.echo, as_json=as_json)


@cli.command()
@click.argument("topic", required=False)
@click.option("--last", default=10, show_default=True, help="How many of the latest records.")
def log(topic: str | None, last: int) -> None:
    """Show the topics of the event log, or the latest records of one."""
    from infra.log import inspect_topics

    run(inspect_topics.show, settings(), topic, last=last, say=click.echo)


@cli.command()
@click.option("--small", is_flag=True, help="A part of the data: a minute or so.")
@click.option("--detach", is_flag=True, help="Leave the server running and return; `headrace down` stops it.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the Online Retail data is.")
@click.option("--port", type=int, help="Port of the API.")
def demo(small: bool, detach: bool, data: Path | None, port: int | None) -> None:
    """The whole story on one machine: import, features, training, serving, replay, reports."""
    from infra.cli import demo as story

    run(story.run, small=small, detach=detach, data=data, port=port, say=click.echo)


@cli.command()
@click.option("--airflow/--no-airflow", default=True, show_default=True, help="With Airflow, or without.")
def up(airflow: bool) -> None:
    """Start the real servers on this machine: Kafka, Redis, feature job, scorer, API, Airflow."""
    from infra.local import stack

    run(stack.up, settings(), airflow=airflow, say=click.echo)


@cli.command()
def down() -> None:
    """Stop what `up` or the demo left running."""
    from infra.cli import demo as story
    from infra.local import processes

    stopped = [*story.down(), *processes.stop_all(settings())]
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


cli.add_command(bench)


def main() -> None:
    cli(prog_name="headrace")
