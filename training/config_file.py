"""Settings of a training run from a JSON file, on top of a named configuration: typed, unknown names refused, and
numbers out of the ranges that stand beside them there."""

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
"""Names of settings before 0.2, which files and records of runs may still have, and what they are called now."""


class SettingsFileError(Exception):
    """The file does not hold settings of a training run; the message says what to change."""


def read_config(path: Path, *, base: Config) -> Config:
    """`base` with what the file says: JSON such as {"retrieval": {"dropout": 0.3}}, or a run's record, for its config.

    Raises SettingsFileError.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsFileError(f"--settings {path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SettingsFileError(f"--settings {path}: is no JSON: {error}") from error
    if isinstance(found, dict) and "manifest" in found and "config" in found:
        found = found["config"]
    merged = _merged(asdict(base), found, path, ())
    try:
        return TypeAdapter(Config).validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        between = " " if first["type"] == OUT_OF_RANGE else ": "
        said = f"{name}{between}{first['msg']}, not {json.dumps(first['input'])}"
        raise SettingsFileError(f"--settings {path}: {said}") from error


def _merged(known: dict[str, Any], found: Any, path: Path, above: tuple[str, ...]) -> dict[str, Any]:
    """`known` with what is `found`; every name must be known."""
    place = ".".join(above)
    if not isinstance(found, dict):
        raise SettingsFileError(
            f'--settings {path}: {place or "the file"} must be an object such as {{"retrieval": {{"dropout": 0.3}}}}'
        )
    merged = dict(known)
    for given, value in found.items():
        name = RENAMED.get((*above, given), given)
        full = ".".join((*above, given))
        if name not in known:
            raise SettingsFileError(f"--settings {path}: there is no {full}; there are {', '.join(known)}")
        merged[name] = _merged(known[name], value, path, (*above, name)) if isinstance(known[name], dict) else value
    return merged
