"""The pages over HTTP: complete with and without data, with no foreign file, and safe against markup in the data."""

import asyncio
import re
from html.parser import HTMLParser

import httpx
import pytest
from fastapi import FastAPI

from apps.console.pages import STATIC
from apps.console.routes import install_missing_page, router
from apps.console.views import AlertFilter, ConsoleData
from tests.apps.console.fakes import EVIL, EmptyData, EvilData

PAGES = (
    "/",
    "/console/recommendations",
    "/console/recommendations?user=17850&n=5",
    "/console/alerts",
    "/console/experiments",
    "/console/experiments/ranker",
)


def get(path: str, data: ConsoleData, *, accept: str = "text/html,*/*;q=0.8") -> httpx.Response:
    app = FastAPI()
    install_missing_page(app)
    app.include_router(router)
    app.state.console = data

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
            return await client.get(path, headers={"Accept": accept})

    return asyncio.run(ask())


class Outline(HTMLParser):
    """Tags of a page, what it links to, and its form fields without a label."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.unlabelled: list[str] = []
        self._labels = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "action", "data-stream") and value]
        if name := given.get("id"):
            self.ids.append(name)
        self._labels += tag == "label"
        if tag in ("input", "select") and not self._labels:
            self.unlabelled.append(str(given.get("name")))

    def handle_endtag(self, tag: str) -> None:
        self._labels -= tag == "label"


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("data", [EmptyData(), EvilData()], ids=["empty", "full"])
def test_a_page_is_complete(path: str, data: ConsoleData) -> None:
    answer = get(path, data)
    missing = path.endswith("/ranker") and type(data) is EmptyData
    assert answer.status_code == (404 if missing else 200)
    outline = Outline(answer.text)
    for tag in ("main", "nav", "header", "footer", "h1", "title"):
        assert outline.tags.count(tag) == 1, tag
    assert not outline.unlabelled
    assert len(outline.ids) == len(set(outline.ids))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_nothing_from_elsewhere(path: str) -> None:
    answer = get(path, EvilData())
    outline = Outline(answer.text)
    assert all(re.match(r"/(?!/)|#|data:", address) for address in outline.addresses), outline.addresses
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"""\bon\w+=["']|<script(?! src="/console/)""", answer.text)


def test_the_files_of_a_page_name_no_other_server() -> None:
    for name, media_type in STATIC.items():
        answer = get(f"/console/static/{name}", EmptyData())
        assert answer.status_code == 200
        assert answer.headers["content-type"] == media_type
        assert "//" not in re.sub(r"^\s*//.*$| // .*$", "", answer.text, flags=re.M)


@pytest.mark.parametrize("name", ["nothing.css", "..%2fpages.py", "%2e%2e/routes.py"])
def test_no_other_file_is_served(name: str) -> None:
    assert get(f"/console/static/{name}", EmptyData()).status_code == 404


@pytest.mark.parametrize("path", PAGES)
def test_data_from_outside_is_no_markup(path: str) -> None:
    assert EVIL not in get(path, EvilData()).text


@pytest.mark.parametrize(
    "path",
    [
        f"/console/recommendations?user={EVIL}&surface={EVIL}",
        f"/console/alerts?card={EVIL}",
        f"/console/experiments/{EVIL}",
    ],
)
def test_typed_text_is_no_markup(path: str) -> None:
    for data in (EmptyData(), EvilData()):
        assert EVIL not in get(path, data).text


def test_the_form_asks_for_the_user_on_the_surface() -> None:
    data = EvilData()
    page = get("/console/recommendations?user=+17850+&surface=&n=20", data).text
    assert data.asked == [("17850", "home", 20)]
    assert 'value="17850"' in page
    assert "Degraded." in page


@pytest.mark.parametrize("n", ["", "0", "-3", "1e9", "ten", "²"])
def test_a_number_of_items_that_is_not_offered_is_ten(n: str) -> None:
    data = EvilData()
    get(f"/console/recommendations?user=a&n={n}", data)
    assert data.asked == [("a", "home", 10)]


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("", AlertFilter()),
        ("outcome=&min_score=&card=", AlertFilter()),
        ("outcome=review&min_score=0.5&card=+c+", AlertFilter("review", "c", 0.5)),
        ("outcome=approve&min_score=nan", AlertFilter()),
        ("min_score=7", AlertFilter()),
        ("min_score=0,25", AlertFilter(min_score=0.25)),
    ],
)
def test_alert_filters(query: str, filters: AlertFilter) -> None:
    data = EvilData()
    assert get(f"/console/alerts?{query}", data).status_code == 200
    assert data.asked == [filters]


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/console/nowhere", f"/{EVIL}"])
def test_an_unknown_address_is_a_page_in_a_browser_and_a_problem_for_a_client(path: str) -> None:
    page = get(path, EmptyData())
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    outline = Outline(page.text)
    assert outline.tags.count("h1") == 1
    assert {"/", "/console/recommendations", "/console/alerts", "/console/experiments", "/docs"} <= {*outline.addresses}
    assert EVIL not in page.text
    for accept in ("*/*", "application/json"):
        answer = get(path, EmptyData(), accept=accept)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert answer.json() == {"type": "about:blank", "status": 404, "title": "Not Found", "detail": "Not Found"}


def test_the_alerts_page_names_the_position_to_resume_from() -> None:
    assert 'data-position="7"' in get("/console/alerts", EvilData()).text


def test_an_unfinished_count_says_so() -> None:
    assert "12,345+" in get("/", EvilData()).text


def test_the_pages_are_no_part_of_the_api() -> None:
    app = FastAPI()
    app.include_router(router)
    assert app.openapi()["paths"] == {}
