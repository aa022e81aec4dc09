"""`headrace train small --search SECONDS`, and what this process tried: what a test starts under torchrun.

python -m tests.flow.search_worker FOLDER SECONDS
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from infra.cli.commands import cli
from training.search import Search, Try


def main() -> None:
    folder, seconds = Path(sys.argv[1]), sys.argv[2]
    tried: list[Try] = []
    write, rank = Search._write, 0

    def noted(search: Search, made: Try, facts: dict[str, Any]) -> None:
        nonlocal rank
        rank = dist.get_rank()
        tried.append(made)
        write(search, made, facts)

    with patch.object(Search, "_write", noted):
        cli.main(["train", "small", "--search", seconds], standalone_mode=False)
    (folder / f"tried-{rank}.json").write_text(json.dumps(tried))


if __name__ == "__main__":
    main()
