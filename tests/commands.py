"""Commands as a user types them, run in this process: starting one of its own takes seconds of imports each time."""

import contextlib
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from tunekit.cli import app


def tunekit(*arguments: object, folder: Path | None = None, given: str = "") -> subprocess.CompletedProcess[str]:
    """What the command ended with and said; an exception that is not told to people is in `stderr`, with code 1."""
    if "--offline" in arguments:  # which no process comes back from
        command = [sys.executable, "-m", "tunekit", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True, check=False)
    with contextlib.chdir(folder or Path.cwd()):
        result = CliRunner().invoke(app, [str(each) for each in arguments], input=given)
    thrown = "" if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
    said = result.stderr + (f"Traceback: {thrown}" if thrown else "")
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, said)
