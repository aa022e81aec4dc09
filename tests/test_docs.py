"""The rules of what people read: words, lines, links, paths and the index (decision 0030).

Pages are all Markdown files. The words of strings and docstrings in code are checked by the same list.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_house import FILES, PYTHON, ROOT, read

COLUMNS = 120
README_LINES = 200
PACKAGES = ("apps", "dags", "features", "infra", "streaming", "training")

BANNED = {
    r"anew": "again",
    r"boards?": "item statistics",
    r"desks?": "alert page, batcher",
    r"doorm[ae]n": "connection balancer",
    r"(?<!math\.)floors?": "baseline",
    r"(go|goes|going|gone|went) on (where|from)": "resume",
    r"greets?|greeted": "accept",
    r"likest": "most similar",
    r"newcomers?": "cold items",
    r"seats?": "worker",
    r"told": "said, reported, distinguished",
    r"verbs?": "command",
}
"""Private words to the word of the glossary."""
WORDS = re.compile(rf"\b({'|'.join(BANNED)})\b", re.I)
ONE_OF_MANY = re.compile(
    r"(?<![\d.,])1 (days|events|files|hours|items|minutes|months|orders|payments|records|rows|seconds|users|weeks)\b"
)
PERCENT = re.compile(r"\d%")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join((*PACKAGES, 'docs', 'tests'))})/[\w./-]*[\w/]")
GENERATED = {"infra/.env"}
"""Paths that a page names and a user makes."""
WRITTEN_BY_CODE = {Path("docs/api.md")}
"""Pages whose lines are as long as what they are made of."""
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)")


def without_blocks(text: str) -> str:
    """Markdown with its fenced code blanked out; lines keep their numbers."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)


def prose(text: str) -> str:
    """Markdown without fenced code, code spans and the targets of links."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)", lambda code: "\n" * code[0].count("\n"), without_blocks(text))


def faults(text: str, pattern: re.Pattern[str]) -> list[str]:
    """What a pattern finds, with the number of its line."""
    return [f"line {text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}" for hit in pattern.finditer(text)]


def spoken(tree: ast.Module) -> Iterator[str]:
    """The strings of a module that a person may read: those of several words, docstrings among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield re.sub(r"`[^`]*`", "", node.value)


def strings_of(path: Path) -> str:
    """What a Python module or an HTML template says to people."""
    if path.suffix == ".py":
        return "\n".join(spoken(ast.parse(read(path))))
    return re.sub(r"<[^>]*>|\{%.*?%\}|\{\{.*?\}\}", "", read(path), flags=re.S)


PAGES = [path for path in FILES if path.suffix == ".md"]
DOCS = [path for path in PAGES if path.parts[0] == "docs"]
CODE = [*PYTHON, *(path for path in FILES if path.suffix == ".html")]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_uses_the_words_of_the_glossary(page: Path) -> None:
    hits = faults(prose(read(page)), WORDS)
    assert not hits, f"{hits}; the words to use: {BANNED}"


@pytest.mark.parametrize("path", CODE, ids=str)
def test_code_speaks_with_the_words_of_the_glossary(path: Path) -> None:
    text = strings_of(path)
    assert not WORDS.findall(text)
    assert not ONE_OF_MANY.findall(text)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_writes_numbers_with_their_units(page: Path) -> None:
    text = prose(read(page))
    assert not faults(text, ONE_OF_MANY), "one of a thing is singular"
    assert not faults(text, PERCENT), "a space stands before the percent sign"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WRITTEN_BY_CODE], ids=str)
def test_a_line_ends_at_120_columns(page: Path) -> None:
    lines = enumerate(without_blocks(read(page)).splitlines(), start=1)
    assert not [
        number for number, line in lines if len(line) > COLUMNS and not line.startswith("|") and " " in line.strip()
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parts[0] == "docs" or (len(page.parts) == 1 and page.name != "README.md")],
    ids=str,
)  # fmt: skip
def test_a_page_begins_with_whom_it_is_for(page: Path) -> None:
    title, _, rest = read(page).partition("\n")
    assert title.startswith("# ")
    assert rest.lstrip().startswith("For "), "the first sentence says whom the page is for"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_named_paths_exist(page: Path) -> None:
    text = read(page)
    links = {target for target in LINK.findall(without_blocks(text)) if not (ROOT / page.parent / target).exists()}
    named = {path for path in PATH.findall(text) if path not in GENERATED}
    gone = {path for path in named if not (ROOT / path).exists() and not list(ROOT.glob(f"{path}*"))}
    assert not links | gone


def test_the_readme_is_short() -> None:
    assert len(read(Path("README.md")).splitlines()) <= README_LINES


def test_the_index_lists_every_page() -> None:
    linked = {(Path("docs") / target).as_posix() for target in LINK.findall(read(Path("docs/index.md")))}
    assert {page.as_posix() for page in DOCS} - {"docs/index.md"} <= linked


@pytest.mark.parametrize("page", [page for page in DOCS if page.parent.name == "decisions"], ids=str)
def test_a_decision_is_headed_by_its_number(page: Path) -> None:
    assert read(page).startswith(f"# {page.name[:4]} ")
