"""Python that a model wrote, run in a process of its own with limits.

It stops accidents: endless loops, memory without end, files and processes all over, the network. It is no wall against
an attacker, who finds a way around hooks in his own process, and it does not keep code from reading files. For code
that may be hostile, run the whole evaluation in a container or a virtual machine.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from tunekit.errors import MissingEnvironment

SECONDS = 10.0
MEMORY = 1 << 30
# Sets the limits, refuses what the limits of the system do not cover, and runs the code that comes on standard input.
# The word that says "passed" is a new one each time, and is only written once all of the code ran to its end.
# A user and a network of its own need a Linux that lets everybody have them; only there are processes counted, as
# elsewhere all those of the user would be. What of Python tells no hook of what it does is replaced.
GUARD = """
import _posixsubprocess, contextlib, ctypes, os, resource, sys, types
seconds, memory, output, here = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
source, word = sys.stdin.buffer.read().decode().split(chr(0))
limits = [("CPU", seconds), ("AS", memory), ("FSIZE", 1 << 20), ("CORE", 0)]
if sys.platform == "linux" and ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) == 0:  # CLONE_NEWUSER, CLONE_NEWNET
    limits.append(("NPROC", 64))
for name, value in limits:
    with contextlib.suppress(OSError, ValueError):  # macOS takes no limit of memory
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))

REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "pty.",
           "ctypes.")
PATHS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1,
         "os.rename": 2, "os.link": 2, "os.symlink": 2, "shutil.rmtree": 1, "sqlite3.connect": 1}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
exit, write = os._exit, os.write

def refuse(*arguments, **others):
    raise PermissionError("further processes and special files are not allowed here")

def watch(event, arguments):
    if event.startswith(REFUSED):
        raise PermissionError(event + " is not allowed here")
    count = PATHS.get(event, 1 if event == "open" and (arguments[2] or 0) & WRITING else 0)
    for path in arguments[:count]:
        if isinstance(path, int):  # a file that is open already
            continue
        path, folder = os.fsdecode(path), arguments[-1]
        if event.startswith("os.") and event != "os.truncate" and isinstance(folder, int) and folder >= 0:
            path = os.path.join("/proc/self/fd", str(folder), path)
        path = os.path.realpath(path.removeprefix("file:"))
        if path != os.devnull and not (path + os.sep).startswith(here + os.sep):
            raise PermissionError("writing outside of the folder is not allowed here")

module = sys.modules["answer"] = types.ModuleType("answer")
try:
    code = compile(source, "answer.py", "exec")
    sys.stdin = None
    _posixsubprocess.fork_exec = os.mkfifo = os.mknod = refuse
    sys.addaudithook(watch)
    exec(code, module.__dict__)
except BaseException as error:
    write(output, (type(error).__name__ + ": " + str(error)[:300]).encode("utf-8", "replace"))
    exit(1)
write(output, word.encode())
exit(0)
"""


@dataclass(frozen=True)
class Outcome:
    """Whether the code ran to its end, and why not."""

    ok: bool
    reason: str = ""


def run_code(code: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Runs Python as a module in an empty folder, with the standard library alone.

    It has no environment, no sockets (which asyncio needs, too) and no further processes.
    What it writes is thrown away, and what stands under `if __name__ == "__main__"` is not run.
    `seconds` of wall time and of processor time, `memory` in bytes, files of 1 MiB. An exit before the end, whatever
    its code, is no success. Raises `MissingEnvironment` on a system without these limits (Windows).
    """
    if os.name != "posix":
        raise MissingEnvironment("code by its unit tests: this system cannot limit a process", "Run it on Linux.")
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as said:
        limits = [str(int(seconds) + 1), str(memory), str(said.fileno())]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARD, *limits, os.path.realpath(folder)],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(said.fileno(),),
            start_new_session=True,
        )
        try:
            process.communicate(f"{code}\0{word}".encode("utf-8", "replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"not done after {seconds:g} s")
        finally:
            _end(process)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
        return Outcome(True) if text == word else Outcome(False, text or f"ended early with code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
