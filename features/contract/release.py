"""Defines the manifest of a release, and checks that a published release is complete.

A release is written under a hidden name, renamed, and only then pointed to by `current`. The manifest names every file
with its SHA-256. Training writes it, serving reads it. Does not know what is inside the files.
"""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

MANIFEST = "manifest.json"
CURRENT = "current"
USER_TOWER, RANKER, FRAUD = "user_tower.onnx", "ranker.onnx", "fraud.onnx"
INDEX, CATALOGUE, ARRAYS = "items.faiss", "catalogue.parquet", "catalogue.safetensors"


class ReleaseError(Exception):
    """Raised when a release cannot be served: a file is missing, differs from its checksum or has an unknown format."""


class _ManifestPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)


class ReferenceDistribution(_ManifestPart):
    """The distribution of a model input in training: the bins that features/contract/drift.py measures with."""

    edges: tuple[float, ...]
    """Upper ends of all bins but the last, ascending; a value equal to an edge belongs below it."""
    shares: tuple[float, ...]
    """Share of the training values in each bin, one more than there are edges."""


class GateResult(_ManifestPart):
    """A model compared with its baselines on the held-out time, by one metric."""

    metric: str
    scores: dict[str, float]
    """The metric of the model and of every baseline, by name."""
    model: str
    best_baseline: str = Field(validation_alias=AliasChoices("best_baseline", "best_floor"))
    """Releases from before 0.2 call it `best_floor`."""
    served: str
    """Name of what is served: the model, or the best baseline if the model does not beat it."""
    metrics: dict[str, dict[str, float]]
    """All measured metrics, by name and then by metric."""


class RecommendModelCard(_ManifestPart):
    """Describes the recommendation models of a release."""

    feature_service: str
    gate: GateResult
    index_kind: str
    index_recall: float
    """Share of the exact top 100 that the index returns."""
    candidate_features: tuple[str, ...]
    heads: dict[str, float] = {"purchase": 1.0}
    """The weight of each head of the ranker in its score."""
    catalogue_items: int
    content_buckets: int = 0
    """Above 0 only in older releases, which hold an item tower that is not read any more."""
    references: dict[str, ReferenceDistribution] = {}
    """By candidate feature; empty in releases from before drift was measured."""


class FraudModelCard(_ManifestPart):
    """Describes the fraud detector of a release."""

    feature_service: str
    gate: GateResult
    features: tuple[str, ...]
    reference_values: tuple[float, ...] = Field(validation_alias=AliasChoices("reference_values", "baseline"))
    """Typical value of each feature (the median of legitimate payments), with which a reason compares.

    Releases from before 0.2 call it `baseline`."""
    review_threshold: float
    """Payments with this score or a higher one are reviewed; chosen from the alert budget."""
    decline_threshold: float
    alert_budget_per_day: float
    references: dict[str, ReferenceDistribution] = {}
    """By feature; empty in releases from before drift was measured."""


class Manifest(_ManifestPart):
    """Describes a release: its data range, models and files."""

    format: Literal[1] = 1
    version: str
    created_time: datetime
    data_start: datetime
    data_end: datetime
    """Time of the last event that any model of this release learned from."""
    packages: dict[str, str]
    seed: int
    recommend: RecommendModelCard | None = None
    fraud: FraudModelCard | None = None
    files: dict[str, str]
    """File name to SHA-256, for every file but the manifest."""


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def current_version(releases: Path) -> str | None:
    """Returns the version that `current` points to; None before the first release."""
    pointer = releases / CURRENT
    return os.readlink(pointer) if pointer.is_symlink() else None


def read_release(releases: Path, version: str) -> tuple[Path, Manifest]:
    """Checks every file of a release and returns its folder and manifest.

    Raises ReleaseError when something is missing, damaged or of an unknown format.
    """
    folder = releases / version
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ReleaseError(f"release {version} has no readable manifest: {error}") from error
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ReleaseError(f"release {version} lacks its file {name}; publish it again")
        if checksum(path) != expected:
            raise ReleaseError(f"release {version}: {name} differs from its checksum; publish it again")
    return folder, manifest
