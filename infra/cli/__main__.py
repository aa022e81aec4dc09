"""Runs the command line: `python -m infra.cli` is what `headrace` is."""

from infra.cli.commands import main

main()
