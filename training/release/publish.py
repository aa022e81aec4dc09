"""Publishing a release: written whole under a hidden name, renamed, then pointed to.

At no moment does `current` point to anything but a complete release; going back is moving the pointer.
"""

import os
import re
import shutil
from pathlib import Path

from features.contract.release import CURRENT, MANIFEST, Manifest, ReleaseError, checksum, current_version, read_release
from infra.atomic_files import sync

KEPT = 5
"""Releases that stay on disk."""


def begin(releases: Path, version: str) -> Path:
    """An empty folder to write the files of `version` into."""
    folder = releases / f".building-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(building: Path, manifest: Manifest) -> Path:
    """Complete the folder from `begin` with its manifest and make it what is served. Returns its final path."""
    releases = building.parent
    files = {path.name: checksum(path) for path in sorted(building.iterdir())}
    complete = manifest.model_copy(update={"files": files})
    (building / MANIFEST).write_text(complete.model_dump_json(indent=2))
    for path in building.iterdir():
        sync(path)
    sync(building)
    final = releases / manifest.version
    building.rename(final)
    point_to(releases, manifest.version)
    _drop_old(releases)
    return final


def point_to(releases: Path, version: str) -> None:
    """Serve `version` from now on. Raises ReleaseError when it is not whole."""
    read_release(releases, version)
    link = releases / f".{CURRENT}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    os.replace(link, releases / CURRENT)
    sync(releases)


def versions(releases: Path) -> list[str]:
    """The published versions, oldest first."""
    if not releases.is_dir():
        return []
    return sorted(
        path.name
        for path in releases.iterdir()
        if re.match(r"^[A-Za-z0-9]", path.name) and path.is_dir() and not path.is_symlink()
    )


def rollback(releases: Path) -> str:
    """Serve the release before the current one; returns its version. Raises ReleaseError when there is none."""
    current = current_version(releases)
    earlier = [version for version in versions(releases) if current is None or version < current]
    if not earlier:
        raise ReleaseError("there is no earlier release to go back to")
    point_to(releases, earlier[-1])
    return earlier[-1]


def _drop_old(releases: Path) -> None:
    for version in versions(releases)[:-KEPT]:
        if version != current_version(releases):
            shutil.rmtree(releases / version)
