"""The rules of the house, on every file of the project: what a reader may rely on without looking."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import topics
from infra.settings import Settings

ROOT = Path(__file__).parents[1]
PYTHON_LINES = 400
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "numpy.load", "np.load"}
REGISTRY = re.compile(r"https?://\S*?(/simple\b|/maven2\b|/packages/)|^\s*--(extra-)?index-url|^\s*--find-links", re.M)


def project_files() -> list[Path]:
    """Files that git tracks or would add, relative to the root; without git, those outside hidden or generated ones."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        paths = [Path(name) for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        generated = re.compile(r"^\.(?!ci$|gitignore$)|^(var|__pycache__|spark-warehouse|metastore_db)$|\.egg-info$")
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        paths = [path for path in paths if not any(generated.search(part) for part in path.parts)]
    return sorted(set(paths))


PATHS = project_files()
FILES = [path for path in PATHS if (ROOT / path).is_file()]
PYTHON = [path for path in FILES if path.suffix == ".py"]


def read(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


def table_rows(page: str) -> dict[str, list[str]]:
    """First cell (without backquotes) to all cells of the first table of a page in docs/."""
    rows: dict[str, list[str]] = {}
    for line in read(Path("docs") / page).splitlines():
        if line.startswith("| `"):
            cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            rows[cells[0]] = cells
        elif rows:
            break
    return rows


def architecture_tree() -> Iterator[str]:
    """Paths of the annotated tree of docs/architecture.md; a path is relative to the folder it is indented below."""
    block = re.search(r"^## The tree\n.*?^```\w*\n(.*?)^```", read(Path("docs/architecture.md")), re.M | re.S)
    assert block, "docs/architecture.md has no fenced block below a heading `## The tree`"
    folders: dict[int, str] = {}
    for line in block[1].splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        depth = len(line) - len(line.lstrip(" "))
        above = max((folder for folder in folders if folder < depth), default=None)
        path = name if above is None else folders[above] + name.removeprefix(folders[above])
        folders = {level: folder for level, folder in folders.items() if level < depth}
        if name.endswith("/"):
            folders[depth] = path
        yield path


def imported_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unsafe(tree: ast.Module) -> Iterator[str]:
    for name in imported_names(tree):
        if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS:
            yield f"import of {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            safe_load = called.endswith(("np.load", "numpy.load")) and any(
                word.arg == "allow_pickle" and ast.unparse(word.value) == "False" for word in node.keywords
            )
            if called in UNSAFE_CALLS and not safe_load:
                yield f"line {node.lineno}: {called}()"
            for word in node.keywords:
                if word.arg == "shell" and ast.unparse(word.value) != "False":
                    yield f"line {node.lineno}: shell={ast.unparse(word.value)}"


def test_the_tree_of_the_architecture_page_equals_the_disk() -> None:
    listed = list(architecture_tree())
    assert len(listed) == len(set(listed)), "the tree names a path twice"
    gone = [path for path in listed if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()]
    assert not gone, f"in docs/architecture.md but not on the disk: {gone}"
    modules = {str(path) for path in PYTHON if path.parts[0] != "tests" and path.name != "__init__.py"}
    assert not modules - set(listed), f"not in docs/architecture.md: {sorted(modules - set(listed))}"


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_a_python_file_keeps_the_house_rules(path: Path) -> None:
    text = read(path)
    assert len(text.splitlines()) <= PYTHON_LINES, f"longer than {PYTHON_LINES} lines: cut it by what it answers"
    if path.name == "__init__.py":
        assert text == "", "an __init__.py is empty"
        assert path.parts[0] != "tests", "an __init__.py below tests/ would shadow the package of that name"
        return
    tree = ast.parse(text)
    assert not tree.body or ast.get_docstring(tree), "the first line says what the module is for"
    assert not list(unsafe(tree))


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "manager"])
def test_there_is_no_drawer_for_everything(name: str) -> None:
    assert not [path for path in PYTHON if name in (path.stem, *path.parts)]


def test_nothing_is_a_link_to_elsewhere() -> None:
    assert not [str(path) for path in PATHS if (ROOT / path).is_symlink()]


def test_no_file_names_a_package_registry() -> None:
    assert not [str(path) for path in FILES if REGISTRY.search(read(path))]


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {name: cells[1] for name, cells in table_rows("settings.md").items()}
    expected = {
        f"HEADRACE_{name.upper()}": "unset" if field.default is None else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert documented == expected


def test_every_topic_is_documented_with_its_key_writers_and_readers() -> None:
    rows = table_rows("topics.md")
    assert set(rows) == set(topics.ALL)
    assert all(len(cells) == 4 and all(cells) for cells in rows.values())


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in FILES if path.parent == Path("docs/decisions"))
    assert [name[:5] for name in names] == [f"{number:04d}-" for number in range(1, len(names) + 1)]


@pytest.mark.parametrize("role", ["serve", "stream", "train"])
def test_each_role_runs_the_versions_that_the_tests_saw(role: str) -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[\w.-]+==[^\s;]+", read(Path(f"infra/requirements/{name}.txt")), re.M))

    assert pins(role) <= pins("dev"), "lock the roles together: `make lock`"


def test_every_requirement_has_a_hash() -> None:
    for path in (path for path in FILES if path.parent == Path("infra/requirements")):
        for block in re.split(r"\n(?=\S)", read(path)):
            if block.strip() and not block.startswith(("#", " ")):
                assert "--hash=sha256:" in block, f"{path}: {block.splitlines()[0]}"
