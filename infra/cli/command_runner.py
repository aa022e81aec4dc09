"""Calls the entry point of a command: with checked settings, and with its own errors as one clear line."""

import logging
import time
from typing import Any

import click

from infra.settings import Settings, SettingsError, read_settings

OWN_PACKAGES = ("apps", "features", "infra", "streaming", "training")


class CommandGroup(click.Group):
    """Names the extra to install where a command needs a package that is not installed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in OWN_PACKAGES:
                raise
            from infra.cli.doctor import ROLES

            extra = next((role for role, packages in ROLES.items() if package in packages), "serve")
            raise click.ClickException(
                f"{ctx.invoked_subcommand} needs {package}, which is not installed: pip install 'headrace[{extra}]'"
            ) from error


def settings() -> Settings:
    """Reads the settings; those that are not usable end the command with a line each."""
    try:
        return read_settings()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def run(entry_point: Any, *arguments: Any, **options: Any) -> Any:
    """Calls an entry point; its own errors become one clear line instead of a traceback."""
    from infra.log.client import LogError, LogFullError

    started = time.monotonic()
    try:
        return entry_point(*arguments, **options)
    except (LogError, LogFullError) as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:
        # The packages name their own errors ...Error and word them for the user; anything else is a bug.
        if type(error).__module__.split(".")[0] in OWN_PACKAGES:
            raise click.ClickException(str(error)) from error
        raise
    finally:
        logging.getLogger(__name__).debug("took %.1f s", time.monotonic() - started)


def pair(text: str) -> tuple[str, str]:
    """Splits FIELD=COLUMN; any other text ends the command."""
    field, equals, column = text.partition("=")
    if not equals or not field or not column:
        raise click.ClickException(f"--map {text}: write FIELD=COLUMN, for example --map user_id=customer")
    return field, column
