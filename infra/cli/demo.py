"""`headrace demo`: the whole flow on one machine, step by step, each step the command that a person would type.

Its data is in var/demo: each run replaces events and features, and keeps releases. The figures that it prints at the
end were measured in this run.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq

from infra import topics
from infra.local import processes
from infra.log.client import read_all
from infra.log.open import open_log
from infra.progress import progress_bar
from infra.settings import Settings

Say = Callable[[str], None]
EXPERIMENT = "ranker"
FROM_SCRATCH = ("log", "offline", "feast", "checkpoints", "status", "holdout", "live", "quality", "warehouse", "logs")
"""Folders of the data directory that each run removes first."""
FRESH_WITHIN_SECONDS = 5.0
FEATURES_SECONDS = 600.0


class DemoError(Exception):
    """Says which step of the demo failed, and where its log is."""


def _settings(port: int | None) -> Settings:
    """Returns the settings of the environment, with the demo's own values for what it leaves open."""
    chosen: dict[str, Any] = {} if port is None else {"port": port}
    base = Settings()
    if "exposures_refresh_seconds" not in base.model_fields_set:
        chosen["exposures_refresh_seconds"] = 3  # the demo ends when the last outcome is joined
    if "data_dir" not in base.model_fields_set:
        chosen["data_dir"] = Path("var/demo").absolute()
    return Settings(**{**base.model_dump(include=base.model_fields_set), **chosen})


def down() -> list[str]:
    """Stops the demo's processes; returns their names."""
    return processes.stop_all(_settings(None))


def run(*, small: bool, detach: bool, data: Path | None, port: int | None, say: Say) -> None:
    """Runs all steps, then serves until Ctrl-C, or returns at once with `detach`. Raises DemoError."""
    settings = _settings(port)
    started = time.monotonic()
    if stopped := processes.stop_all(settings):
        say(f"stopped what an earlier demo left running: {', '.join(stopped)}")
    _refuse_taken_port(settings)
    for name in FROM_SCRATCH:
        shutil.rmtree(settings.data_dir / name, ignore_errors=True)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        _learn(settings, small=small, data=data, say=say)
        _serve(settings, small=small, say=say)
        _conclude(settings, seconds=time.monotonic() - started, say=say)
        if not detach:
            say("serving until Ctrl-C")
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except KeyboardInterrupt:
        pass
    finally:
        if not detach or sys.exc_info()[0] is not None:
            processes.stop_all(settings)
    if detach:
        say("left running; `make down` stops it")


def _learn(settings: Settings, *, small: bool, data: Path | None, say: Say) -> None:
    with _Step(say, "1  Events: a shop's year and card payments into the event log"):
        words = ["import", "online-retail", "--hold-out-days", "30"]
        words += ["--data", str(data)] if data else []
        words += ["--customers", "500"] if small else []
        payments = ["simulate", *(("--cards", "700", "--terminals", "400", "--live-days", "1") if small else ())]
        with ThreadPoolExecutor() as pool:  # at the same time, because they write to different topics
            for done in [pool.submit(_do, settings, *command) for command in (words, payments)]:
                done.result()
    with contextlib.ExitStack() as unfinished:
        with _Step(say, "2  Features: Spark turns events into histories and tables, Feast keeps them"):
            processes.start(settings, "stream", "stream")
            # Training loads its libraries while Spark starts, which leaves half of the machine idle.
            training = _begin(settings, "train", "small" if small else "standard", "--wait")
            unfinished.callback(training.terminate)
            say(_wait_for_features(settings))
        _skip_scored_history(settings)
        # They start while the models train, and wait for the release.
        for name, command in (("api", "serve"), ("scorer", "score")):
            processes.start(settings, name, command)
        with _Step(say, "3  Training, gate and release: two-tower, ranker, fraud detector against their baselines"):
            _end(training)


def _serve(settings: Settings, *, small: bool, say: Say) -> None:
    with _Step(say, "4  Serving: the API loads the release while the feature job keeps running"):
        if not processes.wait_until(lambda: _ready(settings), seconds=90):
            raise DemoError(f"the API did not become ready:\n{processes.log_tail(settings, 'api')}")
        _put_experiment(settings)
        say(f"serving release {_get(settings, '/readyz')['release']} on {_address(settings)}")
    with _Step(say, "5  Traffic: the held-out month, live, model against its best baseline"):
        _do(settings, "traffic", "--seconds", "10" if small else "80")
    with _Step(say, "6  Report: items shown joined to items bought, alerts joined to frauds"):
        say(_show_freshness(settings))
        _wait_for_scorer(settings)
        _wait_for_outcomes(settings)


def _conclude(settings: Settings, *, seconds: float, say: Say) -> None:
    manifest = json.loads((settings.releases_dir / "current" / "manifest.json").read_text())
    say("")
    for name, card in (("recommend", manifest["recommend"]), ("fraud", manifest["fraud"])):
        gate = card["gate"]
        scores = sorted(gate["scores"].items(), key=lambda pair: -pair[1])
        say(
            f"{name:10} {gate['metric']}: {', '.join(f'{model} {score:.3f}' for model, score in scores)}; "
            f"served: {gate['served']}"
        )
    traffic = json.loads(settings.traffic_status.read_text())
    say(
        f"latency    recommend p50 {traffic['recommend_ms']['p50']} ms, p99 {traffic['recommend_ms']['p99']} ms; "
        f"score p50 {traffic['score_ms']['p50']} ms, p99 {traffic['score_ms']['p99']} ms (from the intended send time)"
    )
    quality = json.loads((settings.data_dir / "quality" / "import.json").read_text())
    dead_letters = sum(1 for _ in read_all(open_log(settings), topics.DEAD_LETTERS))
    say(
        f"events     {quality['accepted']:,} imported, {traffic['events']['accepted']:,} accepted live, "
        f"{dead_letters:,} dead-lettered"
    )
    say(f"alerts     {_alert_quality(settings)}")
    report = _get(settings, f"/v1/experiments/{EXPERIMENT}/report")
    say(f"experiment {report['verdict']}")
    say(f"console    {_address(settings)}/   (API: {_address(settings)}/docs)")
    say(f"took       {seconds:.0f} s")


class _Step:
    """Prints a headline before the step and its seconds after it."""

    def __init__(self, say: Say, title: str) -> None:
        self._say = say
        self._title = title

    def __enter__(self) -> None:
        self._say(f"\n{self._title}")
        self._started = time.monotonic()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._say(f"   {time.monotonic() - self._started:.1f} s")


def _do(settings: Settings, *words: str) -> None:
    """Runs one headrace command in the foreground. Raises DemoError when it fails."""
    _end(_begin(settings, *words))


def _begin(settings: Settings, *words: str) -> subprocess.Popen[bytes]:
    """Starts one headrace command in the foreground, for `_end` to wait for."""
    environment = {**processes.environment(settings), "HEADRACE_LOG_LEVEL": "ERROR"}
    return subprocess.Popen(processes.command(*words), env=environment)


def _end(command: subprocess.Popen[bytes]) -> None:
    """Waits for a command that `_begin` started. Raises DemoError when it fails."""
    if command.wait():
        words = cast(list[str], command.args)[len(processes.command()) :]
        raise DemoError(f"`headrace {' '.join(words)}` failed; `headrace doctor` says what may be missing")


def _wait_for_features(settings: Settings) -> str:
    """Follows the feature job until it has caught up with the log and written its tables; returns a summary."""
    status, tables = settings.stream_status, settings.tables_status
    with progress_bar(desc="features", unit="record", unit_scale=True) as bar:

        def done() -> bool:
            if not processes.alive(settings):
                raise DemoError(f"the feature job ended:\n{processes.log_tail(settings, 'stream')}")
            if status.exists():
                bar.n = json.loads(status.read_text())["records"]
            bar.refresh()
            return tables.exists()

        if not processes.wait_until(done, seconds=FEATURES_SECONDS):
            raise DemoError(f"features were not ready in time:\n{processes.log_tail(settings, 'stream')}")
    counts = json.loads(status.read_text())
    written = json.loads(tables.read_text())["made"]
    folded = f"{counts['records']:,} records folded into histories, {counts['rejected']:,} dead-lettered"
    return f"features: {folded}; {written}"


def _skip_scored_history(settings: Settings) -> None:
    """Makes the scorer start after the imported payments, which are history."""
    from apps.fraud import scorer

    scorer.skip_history(open_log(settings))


def _refuse_taken_port(settings: Settings) -> None:
    try:
        urllib.request.urlopen(f"{_address(settings)}/healthz", timeout=2)  # noqa: S310
    except urllib.error.HTTPError:
        pass
    except OSError:
        return
    raise DemoError(
        f"another program already answers on port {settings.port}; stop it, or choose another port with --port (PORT=…)"
    )


def _address(settings: Settings) -> str:
    return f"http://{settings.host}:{settings.port}"


def _get(settings: Settings, path: str) -> Any:
    with urllib.request.urlopen(_address(settings) + path, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def _send(settings: Settings, path: str, body: Any, *, method: str = "POST") -> Any:
    request = urllib.request.Request(  # noqa: S310
        _address(settings) + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def _ready(settings: Settings) -> bool:
    current = settings.releases_dir / "current"
    try:
        return bool(_get(settings, "/readyz")["release"] == os.readlink(current))
    except OSError:
        return False


def _put_experiment(settings: Settings) -> None:
    """Defines the experiment: half of the visitors get the best baseline, half the model."""
    _send(
        settings,
        f"/v1/experiments/{EXPERIMENT}",
        {
            "key": EXPERIMENT,
            "surface": "home",
            "description": "Does the ranker sell more of the items it shows than its best baseline?",
            "metric": "hit_rate",  # nearly every customer buys one of twenty items
            "variations": [
                {"key": "baseline", "weight": 0.5, "parameters": {"recommender": "baseline"}},
                {"key": "model", "weight": 0.5, "parameters": {"recommender": "model"}},
            ],
        },
        method="PUT",
    )


def _show_freshness(settings: Settings) -> str:
    """Posts a purchase and measures the time until the user's recommendations, without seen items, lack that item."""
    holdout = pq.read_table(settings.data_dir / "holdout" / "shop_events.parquet")
    user = next(name for name in reversed(holdout["user_id"].to_pylist()) if name)
    question = {"user_id": user, "surface": "freshness", "n": 20, "seen": "drop"}

    def answer() -> list[str]:
        return [item["item_id"] for item in _send(settings, "/v1/recommend", question)["items"]]

    # The feature job may still work on the traffic; this measures a single event.
    status = settings.stream_status
    processes.wait_until(lambda: time.time() - status.stat().st_mtime > 2, seconds=60)
    bought = answer()[0]
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    event = {"type": "purchase", "event_id": f"demo-{now}", "event_time": stamp, "user_id": user, "item_id": bought}
    posted = time.monotonic()
    _send(settings, "/v1/events", event)
    changed = processes.wait_until(lambda: bought not in answer(), seconds=30, pause=0.05)
    took = time.monotonic() - posted
    if not changed:
        raise DemoError("a purchase did not change its user's answer within 30 s; see logs/stream.log")
    verdict = "" if took <= FRESH_WITHIN_SECONDS else f" (more than the promised {FRESH_WITHIN_SECONDS:.0f} s)"
    return f"freshness: a purchase by user {user} changed that user's answer after {took:.1f} s{verdict}"


def _wait_for_scorer(settings: Settings) -> None:
    log = open_log(settings)

    def done() -> bool:
        return log.committed("scorer", topics.TRANSACTIONS).covers(log.end(topics.TRANSACTIONS))

    if not processes.wait_until(done, seconds=60):
        raise DemoError(f"the scorer did not keep up:\n{processes.log_tail(settings, 'scorer')}")


def _wait_for_outcomes(settings: Settings) -> None:
    """Waits until the report counts every answer of the traffic; the feature job joins outcomes every few seconds."""
    traffic = json.loads(settings.traffic_status.read_text())
    answered = traffic["statuses"].get("recommend 200", 0)

    def done() -> bool:
        report = _get(settings, f"/v1/experiments/{EXPERIMENT}/report")
        counted = sum(variation["exposures"] for variation in report["variations"])
        return bool(counted >= answered)

    if not processes.wait_until(done, seconds=180, pause=1.0):
        raise DemoError(f"the report still lacks answers after 180 s:\n{processes.log_tail(settings, 'stream')}")


def _alert_quality(settings: Settings) -> str:
    """Compares the alerts of the traffic with the frauds that the simulator planted."""
    truth = pq.read_table(settings.data_dir / "live" / "live_transactions.parquet")
    frauds = {
        name for name, fraud in zip(truth["event_id"].to_pylist(), truth["fraud"].to_pylist(), strict=True) if fraud
    }
    outcomes: dict[str, str] = {}
    for record in read_all(open_log(settings), topics.DECISIONS):
        decision = json.loads(record.value)
        outcomes.setdefault(decision["event_id"], decision["outcome"])
    alerts = {name for name, outcome in outcomes.items() if outcome != "approve"}
    caught = len(alerts & frauds)
    precision = f"precision {caught / len(alerts):.2f}, " if alerts else ""
    return (
        f"{len(alerts):,} of {len(outcomes):,} scored payments, {precision}"
        f"{caught} of {len(frauds)} frauds caught (simulated, so the truth is known)"
    )
