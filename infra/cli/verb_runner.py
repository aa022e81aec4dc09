"""How the command line calls an entry point: with checked settings, and its own errors as one clear line."""

import logging
import time
from typing import Any

import click

from infra.settings import Settings, SettingsError, read_settings


def settings() -> Settings:
    """Reads the settings; those that are not usable end the command with a line each."""
    try:
        return read_settings()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def run(verb: Any, *arguments: Any, **options: Any) -> Any:
    """Call an entry point; its own errors become one clear line instead of a traceback."""
    from infra.log.client import LogError, LogFullError

    started = time.monotonic()
    try:
        return verb(*arguments, **options)
    except (LogError, LogFullError) as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:
        # The packages name their own errors ...Error and word them for the user; anything else is a bug.
        if type(error).__module__.split(".")[0] in ("apps", "features", "infra", "streaming", "training"):
            raise click.ClickException(str(error)) from error
        raise
    finally:
        logging.getLogger(__name__).debug("took %.1f s", time.monotonic() - started)


def pair(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not equals or not field or not column:
        raise click.ClickException(f"--map {text}: write FIELD=COLUMN, for example --map user_id=customer")
    return field, column
