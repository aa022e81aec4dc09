"""Runs `headrace train small --search SECONDS` and writes what this process tried; a test starts it under torchrun.

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
    record, rank = Search._record, 0

    def record_here_too(search: Search, result: Try, identity: dict[str, Any]) -> None:
        nonlocal rank
        rank = dist.get_rank()
        tried.append(result)
        record(search, result, identity)

    with patch.object(Search, "_record", record_here_too):
        cli.main(["train", "small", "--search", seconds], standalone_mode=False)
    (folder / f"tried-{rank}.json").write_text(json.dumps(tried))


if __name__ == "__main__":
    main()
