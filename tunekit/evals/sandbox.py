"""Python that a model wrote, run in a process of its own with limits.

It stops accidents: endless loops, memory without end, files and processes all over, the network. It is no wall against
an attacker: for code that may be hostile, run the whole evaluation in a container or a virtual machine.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

SECONDS = 10.0
MEMORY = 1 << 30
FILES = 1 << 20
# Refuses what the limits of the system do not cover, then runs the code that comes on standard input. The word that
# says "passed" is a new one each time, and is only written once all of it ran to its end.
GUARD = """
import sys
source, word = sys.stdin.buffer.read().decode().split(chr(0))
refused = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "ctypes.",
           "os.kill", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.chown", "shutil.rmtree")
here, write = sys.argv[1], sys.stdout.write
def watch(event, arguments):
    if event.startswith(refused):
        raise PermissionError(event + " is not allowed here")
    if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & 0o3103:
        import os
        if not os.path.abspath(arguments[0]).startswith(here + os.sep):
            raise PermissionError("writing outside of the folder is not allowed here")
import os.path
code = compile(source, "answer.py", "exec")
sys.stdin = None
sys.addaudithook(watch)
try:
    exec(code, {"__name__": "__main__"})
except BaseException as error:
    print(type(error).__name__ + ": " + str(error)[:300], file=sys.stderr)
    raise SystemExit(1)
write(word)
"""


@dataclass(frozen=True)
class Outcome:
    """Whether the code ran to its end, and why not."""

    ok: bool
    reason: str = ""


def run_code(code: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Runs Python in an empty folder, without environment, network or further processes.

    `seconds` of wall time and of processor time, `memory` in bytes. An exit before the end, whatever its code, is no
    success.
    """
    word = secrets.token_hex(16)

    def limit() -> None:
        import resource

        for kind, value in (
            (resource.RLIMIT_CPU, int(seconds) + 1),
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_FSIZE, FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (value, value))

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARD, os.path.realpath(folder)],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=errors,
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            process.communicate(f"{code}\0{word}".encode("utf-8", "replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"not done after {seconds:g} s")
        except BrokenPipeError:
            pass
        finally:
            _end(process)
        said.seek(0)
        errors.seek(0)
        if process.returncode == 0 and said.read(FILES).decode("utf-8", "replace").endswith(word):
            return Outcome(True)
        reason = errors.read(FILES).decode("utf-8", "replace").strip().splitlines()
        return Outcome(False, reason[-1] if reason else f"ended early with code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
