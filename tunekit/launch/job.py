"""What is to be started on each machine, the same for every scheduler, and the files that say it."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO
from zlib import crc32

from tunekit.errors import MissingEnvironment, StorageError

RECIPE = "recipe.yaml"
# Exit codes after which another attempt ends the same way. 6 (a lost process) and 75 (preempted) are for another one.
FINAL = (2, 3, 4, 5, 7, 8, 10)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
PORTS = range(20000, 30000)  # below those that systems give out by themselves


@dataclass(frozen=True)
class Job:
    """One run on `nodes` machines with `processes` each; its recipe names both, and `resume: auto`.

    recipe: the text of that file;  folder: where it is written;  directory: where its relative paths start;
    gpus: on each machine, 0 for processors alone
    """

    name: str
    stage: str
    recipe: str
    folder: Path
    directory: Path
    output_dir: str
    nodes: int
    processes: int
    gpus: int
    max_restarts: int
    flags: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return str(self.folder / RECIPE)

    @property
    def command(self) -> list[str]:
        """For a machine that has this installation under the same path."""
        return [sys.executable, "-m", "tunekit", self.stage, self.file, *self.flags]

    @property
    def port(self) -> int:
        """Where the machines meet; another one for each output_dir, so that two runs can share a machine."""
        return PORTS[crc32(str(self.directory / self.output_dir).encode()) % len(PORTS)]


@dataclass(frozen=True)
class Submission:
    """files: their texts, by name;  commands: what submits them, each a list of words"""

    files: dict[str, str]
    commands: list[list[str]]


def label(text: str, longest: int = 40) -> str:
    """`text` as a name that DNS and every scheduler take: a letter first; a pod's host name adds characters to it."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}")[:longest].strip("-")


def write(folder: Path, files: dict[str, str]) -> None:
    """Raises `StorageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: {error.strerror}", "Give another --output.") from error


def submit(command: list[str]) -> str:
    """What a scheduler says to a job that it takes. Raises `MissingEnvironment` where it takes none."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        raise missing(command) from None
    if done.returncode:
        raise MissingEnvironment(
            f"{command[0]} ended with exit code {done.returncode}", f"By hand: {shlex.join(command)}"
        )
    return done.stdout.strip()


def stay(command: list[str], output: TextIO) -> int:
    """Runs a command to its end, and hands on to it the signals that arrive here."""
    process = subprocess.Popen(command, stdout=output, start_new_session=True)
    with handed_on(process.send_signal):
        return process.wait()


@contextmanager
def handed_on(send: Callable[[int], None]) -> Iterator[None]:
    """Signals that arrive in the block go to `send`: there they mean that a run is to save and end."""

    def arrived(number: int, frame: FrameType | None) -> None:
        send(signal.SIGTERM if number == signal.SIGHUP else number)

    previous = {number: signal.signal(number, arrived) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def missing(command: list[str]) -> MissingEnvironment:
    return MissingEnvironment(
        f"{command[0]} is not on this machine", f"The files are written; where it is, run: {shlex.join(command)}"
    )
