"""The console in a real browser: live alerts over a restart, the forms, the plots, small screens and both schemes."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from apps.console import routes as console
from apps.fraud import routes as fraud
from apps.http.errors import install_errors
from infra import topics
from infra.log.client import START
from tests.apps.console.fakes import console_data, decide, decision, publish, run_experiment, services

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
PATHS = (
    "/",
    "/console/recommendations",
    "/console/recommendations?user=17850",
    "/console/recommendations?user=nobody",
    "/console/alerts",
    "/console/experiments",
    "/console/experiments/ranker",
    "/console/experiments/unknown",
    "/nowhere",
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: no browser to drive"),
]


class Server:
    """The console and the alert endpoints on a loopback port of their own, over a log that outlives a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.parts: Any = None

    def start(self) -> None:
        self.parts = services(self._folder)
        app = FastAPI()
        app.state.decisions = self.parts.decisions
        app.state.console = console_data(self.parts, feature_age_seconds=1)
        install_errors(app)
        console.install_missing_page(app)
        app.include_router(fraud.router)
        app.include_router(console.router)
        config = uvicorn.Config(
            app, port=self._port, lifespan="off", ws="none", log_level="warning", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self._server.started

    def stop(self) -> None:
        self.parts.decisions.closing.set()
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox cannot be set up by root, as whom containers run.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=sandbox)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    context.close()
    assert not problems


def rows(page: Any) -> list[str]:
    """Ids of the listed transactions, newest first."""
    ids: list[str] = page.locator("#alerts dl.facts div:first-child dd").all_text_contents()
    return ids


def wait_for_rows(page: Any, count: int) -> None:
    page.locator("#alerts > li").nth(count - 1).wait_for(timeout=20_000)


def test_an_alert_arrives_without_a_reload_and_none_is_lost_over_a_restart(server: Server, page: Any) -> None:
    decide(server.parts.log, decision(1))
    page.goto(f"{server.address}/console/alerts")
    page.wait_for_selector("#live.on")
    page.evaluate("window.sameDocument = true")
    page.locator("#alerts summary").click()

    decide(server.parts.log, decision(2, outcome="decline", score=0.97), decision(3, outcome="approve", score=0.01))
    wait_for_rows(page, 2)
    assert rows(page) == ["tx_2", "tx_1"]

    server.stop()
    page.wait_for_selector("#live:not(.on)")
    decide(server.parts.log, decision(4), decision(5))
    server.start()
    wait_for_rows(page, 4)
    decide(server.parts.log, decision(6))
    wait_for_rows(page, 5)

    assert rows(page) == ["tx_6", "tx_5", "tx_4", "tx_2", "tx_1"]
    assert page.evaluate("window.sameDocument") is True
    assert page.locator("#alerts > li:last-child details[open]").count() == 1
    assert page.locator("#live").text_content() == "Live, 4 new since you opened the page"


def test_a_filtered_list_of_alerts_stays_filtered(server: Server, page: Any) -> None:
    decide(server.parts.log, decision(1, card="card_a"), decision(2, card="card_b", score=0.95, outcome="decline"))
    page.goto(f"{server.address}/console/alerts")
    page.get_by_label("Outcome").select_option("decline")
    page.get_by_label("Score from").fill("0.9")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_selector("#live.on")
    assert rows(page) == ["tx_2"]
    decide(server.parts.log, decision(3), decision(4, score=0.99, outcome="decline"))
    wait_for_rows(page, 2)
    assert rows(page) == ["tx_4", "tx_2"]


def test_alerts_are_a_plain_list_without_scripts(server: Server, browser: Any) -> None:
    decide(server.parts.log, decision(1))
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(f"{server.address}/console/alerts")
    assert plain.locator("#live").text_content() == "Reload the page for newer alerts"
    plain.locator("#alerts summary").click()
    assert plain.get_by_text("payments in 24 hours: 7, usually 1").is_visible()
    context.close()


def test_a_user_is_chosen_by_form_or_example(server: Server, page: Any) -> None:
    server.parts.log.append(topics.SHOP, [("17850", b"{}")])
    page.goto(f"{server.address}/console/recommendations")
    page.get_by_label("User").fill("13047")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("heading", name="What 13047 would be shown").wait_for()
    assert page.get_by_text("Often bought together with a kettle").is_visible()
    page.get_by_role("link", name="17850").click()
    page.get_by_role("heading", name="What 17850 would be shown").wait_for()
    assert [request.user_id for request in server.parts.recommend.previews] == ["13047", "17850"]
    assert server.parts.log.end(topics.IMPRESSIONS) == START


def test_the_report_shows_both_plots(server: Server, page: Any) -> None:
    run_experiment(server.parts, units=400)
    page.goto(server.address)
    page.get_by_role("link", name="ranker").click()
    plots = page.locator("figure .wide svg")
    assert plots.count() == 2
    for index in range(2):
        box = plots.nth(index).bounding_box()
        assert box["width"] > 600
        assert box["height"] > 100
    assert page.locator("figure .wide svg circle").count() > 0


def test_home_renews_itself(server: Server, page: Any) -> None:
    page.goto(server.address)
    assert "No alert yet" in page.locator("main").text_content()
    decide(server.parts.log, decision(1))
    page.get_by_text("card_1").wait_for(timeout=15_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_its_screen_and_can_be_read(server: Server, browser: Any, scheme: str, width: int) -> None:
    run_experiment(server.parts)
    publish(server.parts)
    decide(server.parts.log, decision(1))
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    for path in PATHS:
        page.goto(server.address + path)
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width, path
        assert page.evaluate(SCROLLED_SIDEWAYS) == [], path
        assert page.evaluate(LOWEST_CONTRAST) >= 4.5, path
    assert all(url.startswith((server.address, "data:")) for url in requested)
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_text_of_a_plot_is_readable_and_lies_within_it(server: Server, browser: Any, width: int) -> None:
    run_experiment(server.parts, units=400)
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    page.goto(f"{server.address}/console/experiments/ranker")
    texts = page.evaluate(PLOT_TEXTS)
    assert len(texts) > 20
    assert min(text["pixels"] for text in texts) >= 12
    assert [text["words"] for text in texts if text["cut"]] == []
    context.close()


PLOT_TEXTS = """() => [...document.querySelectorAll('figure svg text')]
  .filter((text) => text.checkVisibility())
  .map((text) => {
    const svg = text.ownerSVGElement, plot = svg.getBoundingClientRect(), box = text.getBoundingClientRect();
    return {
      words: text.textContent,
      pixels: parseFloat(getComputedStyle(text).fontSize) * plot.width / svg.viewBox.baseVal.width,
      cut: box.left < plot.left - 1 || box.right > plot.right + 1,
    };
  })"""

SCROLLED_SIDEWAYS = """() => [...document.querySelectorAll('.scroll')]
  .filter((element) => element.scrollWidth > element.clientWidth)
  .map((element) => element.getAttribute('aria-label'))"""

LOWEST_CONTRAST = """() => {
  // WCAG 2 contrast of every visible text with the colour behind it.
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parts = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((channel) => channel / 255)
    .map((channel) => channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4)
    .reduce((sum, channel, index) => sum + channel * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let ancestor = element; ancestor; ancestor = ancestor.parentElement) {
      const colour = parts(getComputedStyle(ancestor).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255, 255];
  };
  let lowest = 21;
  for (const element of document.querySelectorAll('body *:not(svg *, .quiet, .skip)')) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || !element.checkVisibility()) continue;
    const [front, back] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
    lowest = Math.min(lowest, (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05));
  }
  return lowest;
}"""
