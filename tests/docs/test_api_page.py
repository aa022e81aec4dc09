"""docs/api.md is what the code generates, and shows a request for every operation."""

from infra.cli.api_page import PAGE, openapi, render


def test_the_page_equals_what_the_code_generates() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(openapi()), "run `python -m infra.cli.api_page`"


def test_every_operation_has_a_section_with_a_request() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path, methods in openapi()["paths"].items():
        for method in methods:
            section = page.partition(f"## {method.upper()} {path}\n")[2].partition("\n## ")[0]
            assert "| status | answer |" in section, f"{method} {path}"
            assert "```sh\ncurl" in section, f"{method} {path}"


def test_every_link_leads_to_a_heading_of_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    kept = {character for character in page if character.isalnum() or character in " -_"}
    anchors = {
        "".join(character for character in line.lstrip("# ").lower() if character in kept).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    targets = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert targets <= anchors
