"""The machines themselves, by ssh: the agent of each is started from here, and what it prints comes here."""

import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TextIO
from urllib.parse import urlsplit

from tunekit.errors import MissingEnvironment, RankFailed, RecipeError
from tunekit.launch.job import RECIPE, Job, Submission, handed_on, missing

SCRIPT = "node.sh"
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15")
LOST = 255  # ssh's own exit code
GRACE = 60.0  # seconds in which the agents of the other machines save and end


def submission(job: Job, hosts: Sequence[str]) -> Submission:
    """hosts: as ssh takes them; the first is where they all meet, under the name given here. Raises `RecipeError`."""
    if len(hosts) != job.nodes:
        raise RecipeError(f"--hosts: {len(hosts)} are named, and the run is for {job.nodes}", "Leave --nodes out.")
    for host in hosts:
        if not re.fullmatch(r"[A-Za-z0-9_][^\s,]*", host) or not _address(host):
            raise RecipeError(f"--hosts: {host!r} is no host", "Such as node1, user@node1 or ssh://user@node1:2222.")
    commands = [
        [*SSH, host, shlex.join(["sh", str(job.folder / SCRIPT), str(rank), _address(host)])]
        for rank, host in enumerate(hosts)
    ]
    return Submission({RECIPE: job.recipe, SCRIPT: _script(job, _address(hosts[0]))}, commands)


def _address(host: str) -> str:
    """The name or address in `user@host` or `ssh://user@host:port`, which the other machines reach it by."""
    with suppress(ValueError):
        return urlsplit(host if host.startswith("ssh://") else f"ssh://{host}").hostname or ""
    return ""


def _script(job: Job, head: str) -> str:
    return f"""# Written by tunekit launch, which starts it on each machine: sh {SCRIPT} RANK ADDRESS.
# Signals come as lines on standard input. Where that ends, so has the machine which started this: the run saves.
exec 2>&1 3<&0
cd {shlex.quote(str(job.directory))} || exit 7
export PET_RDZV_ENDPOINT={shlex.quote(f"{head}:{job.port}")} PET_RDZV_ID={job.name}
export PET_NODE_RANK="$1" PET_LOCAL_ADDR="$2"
{shlex.join(job.command)} 3<&- &
agent=$!
(while read -r name; do kill -s "$name" $agent; done; kill -s TERM $agent) <&3 >&- 2>&- &
wait $agent
"""


class _Host:
    """One machine, which is put into `ended` when its command has."""

    def __init__(self, name: str, command: list[str], output: TextIO, ended: "SimpleQueue[_Host]") -> None:
        self.name, self.reached, self._output = name, False, output
        # A session of its own: Ctrl-C goes to the agent and not to ssh.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._print, args=(ended,), daemon=True).start()

    def _print(self, ended: "SimpleQueue[_Host]") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.reached = True
            print(f"[{self.name}] {line.rstrip()}", file=self._output, flush=True)
        self.process.wait()
        ended.put(self)

    def signal(self, number: int) -> None:
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended
            self.process.stdin.write(f"{signal.Signals(number).name.removeprefix('SIG')}\n")
            self.process.stdin.flush()


def run(submission: Submission, hosts: Sequence[str], output: TextIO) -> int:
    """Runs to the end on all hosts; the first that fails ends the others, and its exit code is returned.

    Raises `MissingEnvironment` where a host cannot be reached, `RankFailed` where the connection to one was lost.
    """
    ended = SimpleQueue[_Host]()
    running: list[_Host] = []

    def tell(number: int) -> None:
        for host in running:
            host.signal(number)

    with handed_on(tell):
        try:
            for name, command in zip(hosts, submission.commands, strict=True):
                running.append(_Host(name, command, output, ended))
            failed = _wait(running, ended, tell)
        except FileNotFoundError:
            raise missing(submission.commands[0]) from None
        finally:
            for host in running:
                host.process.kill()
    return _exit_code(failed)


def _wait(running: list[_Host], ended: "SimpleQueue[_Host]", tell: Callable[[int], None]) -> _Host | None:
    """The first host that failed, once all have ended or had the time to."""
    failed, deadline = None, float("inf")
    while running and time.monotonic() < deadline:
        try:
            host = ended.get(timeout=0.5)
        except Empty:
            continue
        running.remove(host)
        if host.process.returncode and failed is None:
            failed, deadline = host, time.monotonic() + GRACE
            tell(signal.SIGTERM)
    return failed


def _exit_code(failed: _Host | None) -> int:
    if failed is None:
        return 0
    if failed.process.returncode != LOST:
        return failed.process.returncode
    if failed.reached:
        raise RankFailed(f"{failed.name}: the connection was lost", "The same command goes on where it was.")
    raise MissingEnvironment(
        f"{failed.name}: ssh cannot log in there",
        f"Must work without a question: ssh -o BatchMode=yes {failed.name} true",
    )
