"""Joins ports to adapters: the one place that knows which classes the running processes are made of."""

import logging
import threading
import time
from collections.abc import Callable

from apps.adapters.feast_reader import FeastReader
from apps.adapters.release_files import Releases
from apps.experiments.definitions import Experiments
from apps.experiments.report import load_units, report
from apps.fraud import scorer
from apps.fraud.alerts import DecisionBook
from apps.fraud.service import FraudService
from apps.ingest.service import IngestService
from apps.metrics import RELEASE
from apps.ports import Clock
from apps.recommend.board import ItemBoard
from apps.recommend.service import RecommendService, Serving
from infra.log.client import Share, open_log
from infra.settings import Settings

logger = logging.getLogger(__name__)


class Services:
    """Everything one process serves with, and the thread that keeps it up to date."""

    def __init__(self, settings: Settings, clock: Clock = time.time) -> None:
        self.settings = settings
        self.log = open_log(settings)
        self.reader = FeastReader(settings)
        self.releases = Releases(settings.releases_dir)
        self.experiments = Experiments(self.log, clock)
        self.decisions = DecisionBook(
            self.log, decisions_kept=settings.decisions_kept, alerts_kept=settings.alerts_kept
        )
        self.fraud = FraudService(
            lambda: self.releases.fraud, reader=self.reader, log=self.log, decisions=self.decisions, clock=clock
        )
        self.ingest = IngestService(
            self.log,
            clock,
            recent=settings.recent_event_ids,
            max_event_bytes=settings.max_event_bytes,
            max_future_seconds=settings.max_future_seconds,
            max_age_days=settings.max_event_age_days,
        )
        self.recommend = RecommendService(
            lambda: self._serving,
            self.reader,
            self.log,
            self.experiments,
            clock,
            per_source=settings.candidates_per_source,
            max_future_seconds=settings.max_future_seconds,
        )
        self._serving: Serving | None = None
        self._halt = threading.Event()

    def poll_release(self) -> None:
        """Serve the newest whole release; its item board is read before the first request meets it."""
        if not self.releases.poll():
            return
        if self.releases.recommender is not None:
            serving = Serving(self.releases.recommender, ItemBoard(self.releases.recommender))
            serving.board.refresh(self.reader)
            self._serving = serving
        RELEASE.clear()
        RELEASE.labels(str(self.releases.version)).set(1)

    def keep_fresh(self) -> Callable[[], None]:
        """Start looking for releases and renewing the item board; returns what stops it."""
        self.poll_release()
        thread = threading.Thread(target=self._renew, name="renew", daemon=True)
        thread.start()

        def stop() -> None:
            self._halt.set()
            thread.join(timeout=5)

        return stop

    def _renew(self) -> None:
        next_board = time.monotonic() + self.settings.population_refresh_seconds
        while not self._halt.wait(self.settings.release_poll_seconds):
            try:
                self.poll_release()
                if self._serving is not None and time.monotonic() >= next_board:
                    self._serving.board.refresh(self.reader)
                    next_board = time.monotonic() + self.settings.population_refresh_seconds
            except Exception:
                logger.exception("looking for a new release failed; trying again")


def run_scorer(settings: Settings, *, stop: threading.Event) -> None:
    """Score the transactions that arrive in the log until `stop` is set."""
    services = Services(settings)
    halt = services.keep_fresh()
    try:
        share = Share(settings.scorer_share, settings.scorer_shares)
        scorer.run(services.log, service=services.fraud, decisions=services.decisions, stop=stop, share=share)
    finally:
        halt()


def print_report(settings: Settings, key: str, *, say: Callable[[str], None]) -> None:
    """An experiment's report as lines of text. Raises UnknownExperimentError."""
    services = Services(settings)
    definition = services.experiments.get(key)
    if definition is None:
        known = ", ".join(one.key for one in services.experiments.all()) or "none yet"
        raise UnknownExperimentError(f"there is no experiment {key!r}; there are: {known}")
    told = report(load_units(settings.offline_dir, key), definition, now=services.experiments.now())
    say(f"experiment {key}: {told.verdict}")
    for variation in told.variations:
        say(
            f"  {variation.key}: {variation.units:,} units, {variation.exposures:,} exposures, "
            f"{variation.conversions:,} conversions"
        )
    say(f"  sample ratio: {told.sample_ratio.verdict}")
    for note in told.notes:
        say(f"  note: {note}")


class UnknownExperimentError(Exception):
    """No experiment has this key; says which there are."""
