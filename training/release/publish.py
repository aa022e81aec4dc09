"""Publishes a release: its folder is written whole under a hidden name, renamed, and then made the current one.

The link `current` always points to a complete release; a rollback moves it.
"""

import os
import re
import shutil
from pathlib import Path

from features.contract.release import CURRENT, MANIFEST, Manifest, ReleaseError, checksum, current_version, read_release
from infra.atomic_files import sync

KEPT_RELEASES = 5
"""Number of the latest releases that stay on disk; the current one always stays."""


def begin(releases: Path, version: str) -> Path:
    """Returns an empty folder to write the files of `version` into."""
    folder = releases / f".building-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(building: Path, manifest: Manifest) -> Path:
    """Completes the folder from `begin` with its manifest, makes it the current release and returns its final path."""
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
    """Makes `version` the current release. Raises ReleaseError when it is not whole."""
    read_release(releases, version)
    link = releases / f".{CURRENT}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    os.replace(link, releases / CURRENT)
    sync(releases)


def versions(releases: Path) -> list[str]:
    """Returns the published versions, oldest first."""
    if not releases.is_dir():
        return []
    return sorted(
        path.name
        for path in releases.iterdir()
        if re.match(r"^[A-Za-z0-9]", path.name) and path.is_dir() and not path.is_symlink()
    )


def rollback(releases: Path) -> str:
    """Makes the release before the current one current, and returns its version. Raises ReleaseError without one."""
    current = current_version(releases)
    earlier = [version for version in versions(releases) if current is None or version < current]
    if not earlier:
        raise ReleaseError("there is no earlier release to go back to")
    point_to(releases, earlier[-1])
    return earlier[-1]


def _drop_old(releases: Path) -> None:
    """Deletes all but the latest KEPT_RELEASES and the current one."""
    for version in versions(releases)[:-KEPT_RELEASES]:
        if version != current_version(releases):
            shutil.rmtree(releases / version)
