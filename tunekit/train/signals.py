"""SIGTERM, SIGUSR1 and Ctrl-C: finish the step, save, leave with a code that says so."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunekit.errors import Interrupted, Preempted, TunekitError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """What a signal raises outside deferred parts: no `except Exception` of a library may swallow it."""

    def __init__(self, error: TunekitError) -> None:
        self.error = error


class StopRequest:
    """The signal that arrived, if any. While `deferred` it is only noted, to be polled; else it ends the run at once.

    A second signal ends the process immediately, whatever it is doing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self.outcome = "stopped before the first step; there was nothing to save"

    @contextmanager
    def installed(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        try:
            yield
        except Stopped as stopped:
            raise stopped.error from None
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def error(self, outcome: str) -> TunekitError:
        """The error to end with; `outcome` tells what was saved (between deferred parts it is `self.outcome`)."""
        assert self.received is not None
        kind = Interrupted if self.received == signal.SIGINT else Preempted
        return kind(f"{signal.Signals(self.received).name}: {outcome}")

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        if not self._deferred:
            raise Stopped(self.error(self.outcome))
