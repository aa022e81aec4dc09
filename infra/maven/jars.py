"""Fetches the jars of Kafka's broker and of Spark's Kafka source with Maven, once, and checks their pinned hashes.

`<name>.xml` lists what to fetch, `<name>.sha256` the expected hashes. Once the jars are in settings.tools_dir, neither
Maven nor a network is needed. After a change of version run `python -m infra.maven.jars pin` and review the difference.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.settings import Settings

HERE = Path(__file__).parent
BROKER = "broker"
SPARK = "spark"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
FETCH_SECONDS = 600


class JarsError(Exception):
    """Says what to do when the jars are missing and cannot be fetched, or are not the pinned ones."""


def jars(settings: Settings, name: str) -> list[Path]:
    """Returns the paths of the jars of BROKER or SPARK, fetched if missing, and checked. Raises JarsError."""
    folder = settings.tools_dir.absolute() / f"kafka-{name}"
    pinned = _read_pins(name)
    if not folder.is_dir():
        _fetch(name, folder, pinned=pinned)
    _check(folder, pinned)
    return [folder / jar for jar in sorted(pinned)]


def _read_pins(name: str) -> dict[str, str]:
    lines = (HERE / f"{name}.sha256").read_text().splitlines()
    return {jar: digest for digest, jar in (line.split("  ") for line in lines)}


def _check(folder: Path, pinned: dict[str, str]) -> None:
    actual = _hashes(folder)
    if actual != pinned:
        wrong = sorted(set(actual.items()) ^ set(pinned.items()))
        raise JarsError(
            f"{folder} does not hold the pinned jars ({wrong[0][0]} differs); remove the folder and run this again"
        )


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.jar"))}


def _fetch(name: str, folder: Path, *, pinned: dict[str, str] | None) -> None:
    """Lets Maven resolve and copy, with its own checksums enforced (-C); the folder appears whole or not at all."""
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsError(
            f"the jars of {folder.name} are not in {folder}, and Maven is missing; `headrace doctor` says how to get it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fetched = Path(scratch) / "jars"
        done = subprocess.run(
            [maven, "-B", "-q", "-C", "-f", str(HERE / f"{name}.xml"), COPY, "-DincludeScope=runtime",
             f"-DoutputDirectory={fetched}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FETCH_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            errors = [line for line in done.stdout.splitlines() if "ERROR" in line]
            raise JarsError(f"Maven could not fetch the jars of {folder.name}: {(errors or ['it gave no reason'])[0]}")
        if pinned is not None:
            _check(fetched, pinned)
        fetched.rename(folder)


def _pin() -> None:
    """Rewrites the hash files with what the poms resolve to now."""
    for name in (BROKER, SPARK):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            _fetch(name, folder, pinned=None)
            lines = [f"{digest}  {jar}" for jar, digest in _hashes(folder).items()]
        (HERE / f"{name}.sha256").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["pin"]:
        _pin()
    else:
        for each in (BROKER, SPARK):
            print(f"{len(jars(Settings(), each))} jars of {each}")
