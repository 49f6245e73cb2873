"""The errors that a user can meet, each with its exit code.

A `TunekitError` is printed as a message, never as a traceback. Every other exception is a bug of ours and exits with 1.
"""

import os
from pathlib import Path

OUTCOMES = "TUNEKIT_OUTCOMES"  # names the folder in which the processes that an agent started leave their exit codes


class TunekitError(Exception):
    """What went wrong (`message`: the place, the value, what is accepted) and what to do about it (`fix`)."""

    exit_code = 1
    told = False  # by another process than this one

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n{self.fix}" if self.fix else self.message


class RecipeError(TunekitError):
    """The recipe or the command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class DataError(TunekitError):
    """A data file is missing, malformed, empty or holds nothing to train on."""

    exit_code = 3


class StorageError(TunekitError):
    """A file that the run needs cannot be written, or what was written does not verify."""

    exit_code = 4


class MemoryExceeded(TunekitError):
    """The longest batch does not fit into memory."""

    exit_code = 5


class RankFailed(TunekitError):
    """One of several processes failed, was killed or hangs."""

    exit_code = 6


class MissingEnvironment(TunekitError):
    """A library, a device, a model or the network is missing."""

    exit_code = 7


class GateFailed(TunekitError):
    """The result exists but does not pass a bound it was measured against."""

    exit_code = 8


class Diverged(TunekitError):
    """The loss or the gradient norm is not finite; the weights are those before the bad update."""

    exit_code = 10


class Preempted(TunekitError):
    """SIGTERM or SIGUSR1 arrived; what could be saved was saved."""

    exit_code = 75


class Interrupted(TunekitError):
    """Ctrl-C arrived; what could be saved was saved."""

    exit_code = 130


def leave_outcome(code: int) -> int:
    """What a process ends with: to an agent (`train.launcher`) only what another try may mend is a failure."""
    folder = os.environ.get(OUTCOMES)
    if folder is None or "RANK" not in os.environ:
        return code
    (Path(folder) / os.environ["RANK"]).write_text(str(code))
    return code if code == RankFailed.exit_code else 0
