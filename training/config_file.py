"""Reads settings of a training run from a JSON file, on top of a named configuration.

Refuses unknown names, values of another type, and numbers outside the ranges of training/configs.py.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from training.configs import Config
from training.core.ranges import OUT_OF_RANGE

RENAMED = {
    ("gate_orders",): "gate_visits",
    ("retrieval", "batch_orders"): "batch_visits",
    ("retrieval", "max_looking"): "max_visits_without_purchase",
    ("ranker", "batch_orders"): "batch_visits",
    ("ranker", "max_orders"): "max_visits",
    ("ranker", "rank"): "cross_rank",
}
"""Names of settings before 0.2, which files and records of runs may still have, with their current names."""


class SettingsFileError(Exception):
    """Raised where the file does not hold settings of a training run; the message says what to change."""


def read_config(path: Path, *, base: Config) -> Config:
    """Returns `base` with the settings in the file replaced.

    The file holds JSON such as {"retrieval": {"dropout": 0.3}}, or the record of a run, of which its config is read.
    Raises SettingsFileError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsFileError(f"--settings {path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SettingsFileError(f"--settings {path}: is not JSON: {error}") from error
    if isinstance(content, dict) and "manifest" in content and "config" in content:
        content = content["config"]
    merged = _merged(asdict(base), content, path, ())
    try:
        return TypeAdapter(Config).validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        separator = " " if first["type"] == OUT_OF_RANGE else ": "
        message = f"{name}{separator}{first['msg']}, not {json.dumps(first['input'])}"
        raise SettingsFileError(f"--settings {path}: {message}") from error


def _merged(base: dict[str, Any], content: Any, path: Path, parents: tuple[str, ...]) -> dict[str, Any]:
    """Returns `base` with the values of `content`; refuses unknown names. parents: names of the part they are in."""
    if not isinstance(content, dict):
        part = ".".join(parents) or "the file"
        raise SettingsFileError(
            f'--settings {path}: {part} must be an object such as {{"retrieval": {{"dropout": 0.3}}}}'
        )
    merged = dict(base)
    for key, value in content.items():
        name = RENAMED.get((*parents, key), key)
        if name not in base:
            unknown = ".".join((*parents, key))
            raise SettingsFileError(f"--settings {path}: there is no setting {unknown}; there are {', '.join(base)}")
        merged[name] = _merged(base[name], value, path, (*parents, name)) if isinstance(base[name], dict) else value
    return merged
