"""Which Python the environments are made with: the fastest on PATH of those that Headrace runs on.

Half of an answer is the interpreter, and how it was built decides how fast that half is: version managers often build
it in minutes, without optimisation by profile. What an interpreter says of its build is not to be relied on (Debian's
says nothing of it), so each does the same work for a moment. Standard library only: nothing is installed yet.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("python3.12", "python3.11", "python3")
WORTH = 1.1
"""The first on PATH is taken unless another one is so many times as fast."""
ROUNDS = 5
FACTS = "import sys; print(sys.executable, sys.version_info[0], sys.version_info[1], sep='\\n')"


def work() -> float:
    """Processor seconds of what an answer is made of: small objects, dicts, lists and strings."""

    class Item:
        __slots__ = ("name", "price")

        def __init__(self, name: str, price: int) -> None:
            self.name, self.price = name, price

    started, told = time.process_time(), {}
    for number in range(20_000):
        item = Item(f"item-{number % 100}", number)
        told[item.name] = [value for value in (item.price, number) if value]
    return time.process_time() - started


def found(path: str) -> list[str]:
    """Interpreters of a usable version in the folders of `path`, in its order, each once."""
    usable: dict[Path, str] = {}
    for folder in path.split(os.pathsep):
        for name in NAMES:
            candidate = Path(folder or ".") / name
            if not candidate.is_file():
                continue
            # A version manager may leave a name on PATH that does not run.
            asked = subprocess.run([candidate, "-c", FACTS], capture_output=True, text=True, check=False)
            facts = asked.stdout.split("\n")
            if asked.returncode == 0 and (3, 11) <= (int(facts[1]), int(facts[2])) < (3, 13):
                usable.setdefault(Path(facts[0]).resolve(), facts[0])
    return list(usable.values())


def fastest(interpreters: list[str]) -> str:
    """In turns, so that a busy moment of the machine meets all of them; the quickest round of each counts."""
    seconds = dict.fromkeys(interpreters, float("inf"))
    for _ in range(ROUNDS):
        for one in interpreters:
            asked = subprocess.run([one, __file__, "--work"], capture_output=True, text=True, check=True)
            seconds[one] = min(seconds[one], float(asked.stdout))
    best = min(interpreters, key=lambda one: seconds[one])
    return best if seconds[interpreters[0]] > WORTH * seconds[best] else interpreters[0]


def main() -> int:
    if "--work" in sys.argv:
        print(min(work() for _ in range(3)))
        return 0
    interpreters = found(os.environ.get("PATH", ""))
    if not interpreters:
        print("Headrace needs Python 3.11 or 3.12 on PATH and found neither", file=sys.stderr)
        return 1
    print(fastest(interpreters) if len(interpreters) > 1 else interpreters[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
