"""Defines the only kind of task of the DAGs: a `headrace` command line, run as a list of words without a shell.

HEADRACE_BIN names the executable where `headrace` is not on the worker's PATH. Does not know what the commands do.
Airflow puts the DAG folder itself on sys.path, so the DAGs import this module as `command`.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator

RETRIES = {
    "retries": 2,
    "retry_delay": timedelta(seconds=float(os.environ.get("HEADRACE_RETRY_SECONDS", "60"))),
}
"""default_args of every DAG; the commands are safe to repeat."""


class Headrace(BaseOperator):
    """Runs `headrace <words>`, copies its output to the task's log, and fails when it exits with other than 0."""

    template_fields = ("words",)

    def __init__(self, *, words: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.words = words
        self.hook = SubprocessHook()

    def execute(self, context: Any) -> None:
        argv = [os.environ.get("HEADRACE_BIN", "headrace"), *self.words]
        # By default the hook runs in an empty temporary folder, where a relative HEADRACE_DATA_DIR would be created.
        code = self.hook.run_command(argv, cwd=str(Path.cwd())).exit_code
        if code != 0:
            raise RuntimeError(f"`{' '.join(argv)}` exited with {code}; its output above says why")

    def on_kill(self) -> None:
        self.hook.send_sigterm()
