"""Stages as processes of their own: memory is given back after each, and a crash is that of one stage only."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tunekit.errors import Interrupted, Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
COMMAND = (sys.executable, "-m", "tunekit")


class Children:
    """Starts one process at a time and hands on to it the signals that arrive here.

    Between processes a signal ends the pipeline at once, by `Interrupted` or `Preempted`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._starting = False
        self._child: subprocess.Popen[str] | None = None
        self._not_sent: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """The return code of `tunekit ARGUMENTS` (negative: killed by that signal), and what it printed."""
        self._starting, self._not_sent = True, None
        try:
            # A session of its own: a terminal sends Ctrl-C to all of a group, and a second one ends a run unsaved.
            self._child = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
            if self._not_sent is not None:
                self._child.send_signal(self._not_sent)
            output, _ = self._child.communicate()
            return self._child.returncode, output
        finally:
            self._child, self._starting = None, False

    def check(self) -> None:
        """Raises what a signal asks for that arrived while a process ran."""
        if self.received is not None:
            kind = Interrupted if self.received == signal.SIGINT else Preempted
            raise kind(f"{signal.Signals(self.received).name}: the stages that are done stay; run again to go on")

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        number = signal.SIGTERM if number == signal.SIGHUP else number  # a terminal that closes: save and leave
        if self._child is not None:
            self._child.send_signal(number)
        elif self._starting:
            self._not_sent = number
        else:
            self.check()


def exit_code(returncode: int) -> int:
    """The exit code of a process as one of ours, also where a signal ended it."""
    return EXIT_CODES.get(signal.Signals(number), 1) if (number := _signal_of(returncode)) else returncode


def how_it_ended(returncode: int) -> str:
    number = _signal_of(returncode)
    if not number:
        return f"exit code {returncode}"
    hint = " (the system does this where memory is short)" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{hint}"


def _signal_of(returncode: int) -> int:
    """The signal that ended a process; 0 if none. A run that gets a second one exits with 128 and its number."""
    number = -returncode if returncode < 0 else returncode - 128
    return number if number in set(signal.Signals) and returncode != Interrupted.exit_code else 0
