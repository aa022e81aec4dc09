"""Prints the Python that the environments are created with: the fastest usable one on PATH.

Half of the time of an answer is spent in the interpreter, and its build decides how fast it is: version managers often
build without profile-guided optimisation. An interpreter does not report its build reliably (Debian's says nothing), so
each runs the same work for a moment. Uses the standard library only, because nothing is installed yet.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("python3.12", "python3.11", "python3")
WORTH = 1.1
"""The first on PATH is chosen unless another is at least this many times as fast."""
ROUNDS = 5
FACTS = "import sys; print(sys.executable, sys.version_info[0], sys.version_info[1], sep='\\n')"


def work() -> float:
    """Returns the CPU seconds of work like that of an answer: small objects, dicts, lists and strings."""

    class Item:
        __slots__ = ("name", "price")

        def __init__(self, name: str, price: int) -> None:
            self.name, self.price = name, price

    started, prices = time.process_time(), {}
    for number in range(20_000):
        item = Item(f"item-{number % 100}", number)
        prices[item.name] = [value for value in (item.price, number) if value]
    return time.process_time() - started


def usable_interpreters(path: str) -> list[str]:
    """Returns the interpreters of a usable version in the folders of `path`, in its order, each once."""
    usable: dict[Path, str] = {}
    for folder in path.split(os.pathsep):
        for name in NAMES:
            candidate = Path(folder or ".") / name
            if not candidate.is_file():
                continue
            # A version manager may leave a name on PATH that does not run.
            run = subprocess.run([candidate, "-c", FACTS], capture_output=True, text=True, check=False)
            facts = run.stdout.split("\n")
            if run.returncode == 0 and (3, 11) <= (int(facts[1]), int(facts[2])) < (3, 13):
                usable.setdefault(Path(facts[0]).resolve(), facts[0])
    return list(usable.values())


def fastest(interpreters: list[str]) -> str:
    """Returns the first interpreter, or the fastest when that is WORTH it.

    They run in turns, so that a busy moment of the machine slows all of them; the best round of each counts.
    """
    seconds = dict.fromkeys(interpreters, float("inf"))
    for _ in range(ROUNDS):
        for interpreter in interpreters:
            run = subprocess.run([interpreter, __file__, "--work"], capture_output=True, text=True, check=True)
            seconds[interpreter] = min(seconds[interpreter], float(run.stdout))
    best = min(interpreters, key=lambda interpreter: seconds[interpreter])
    return best if seconds[interpreters[0]] > WORTH * seconds[best] else interpreters[0]


def main() -> int:
    if "--work" in sys.argv:
        print(min(work() for _ in range(3)))
        return 0
    interpreters = usable_interpreters(os.environ.get("PATH", ""))
    if not interpreters:
        print("Headrace needs Python 3.11 or 3.12, and neither is on PATH", file=sys.stderr)
        return 1
    print(fastest(interpreters) if len(interpreters) > 1 else interpreters[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
