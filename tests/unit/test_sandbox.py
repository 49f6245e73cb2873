"""Code of a model passes by its tests alone, and cannot do what it should not."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tunekit.errors import DataError
from tunekit.evals.metrics.code import pass_at_1
from tunekit.evals.metrics.metric import Answered
from tunekit.evals.sandbox import run_code

MBPP = {"test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"], "test_setup_code": ""}
HUMAN = {
    "prompt": "def add(a, b):\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}


@pytest.mark.parametrize(
    ("code", "row", "passed"),
    [
        ("def add(a, b):\n    return a + b", MBPP, 1.0),
        ("def add(a, b):\n    return a - b", MBPP, 0.0),
        ("def add(a, b)\n    return", MBPP, 0.0),
        ("import re, math, json, collections\ndef add(a, b):\n    return int(math.fsum([a, b]))", MBPP, 1.0),
        ("    return a + b", HUMAN, 1.0),
        ("def add(a, b):\n    return a + b", HUMAN, 1.0),
        ("    return 0", HUMAN, 0.0),
        ("", MBPP, 0.0),
    ],
)
def test_code_passes_by_the_tests_of_its_row(code: str, row: dict, passed: float) -> None:
    assert pass_at_1(Answered(code, row=row)) == passed


def test_a_function_written_anew_has_what_its_prompt_has_before_it() -> None:
    prompt = 'from math import pi\n\ndef twice(x):\n    return 2 * x\n\ndef add(a, b):\n    """Adds."""\n'
    row = {**HUMAN, "prompt": prompt, "test": f"{HUMAN['test']}    assert pi > twice(1)\n"}
    assert pass_at_1(Answered("    return a + b", row=row)) == 1
    assert pass_at_1(Answered("def add(a, b):\n    return a + b if pi > twice(1) else 0", row=row)) == 1
    assert pass_at_1(Answered("    return a + b\n\ndef add_one(x):\n    return x", row=row)) == 1


def test_code_is_read_from_a_fence_where_the_task_extracted_nothing() -> None:
    said = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."
    assert pass_at_1(Answered(said, completion=f"{said}\n", row=MBPP)) == 1
    assert pass_at_1(Answered("def add(a, b):\n    return 0", completion=said, row=MBPP)) == 0
    assert pass_at_1(Answered("return a + b", completion="    return a + b\n", row=HUMAN)) == 1


def test_the_set_up_of_the_tests_is_run_before_them() -> None:
    row = {"test_list": ["assert add(one, 2) == 3"], "test_setup_code": "one = 1"}
    assert pass_at_1(Answered("def add(a, b):\n    return a + b", row=row)) == 1


@pytest.mark.parametrize("row", [{}, {"test": "", "prompt": ""}, {"entry_point": "f"}])
def test_a_row_without_tests_is_said(row: dict) -> None:
    with pytest.raises(DataError, match="neither test_list nor test and entry_point"):
        pass_at_1(Answered("x = 1", row=row))


@pytest.mark.parametrize("stop", ["import sys; sys.exit(0)", "raise SystemExit", "import os; print('ok'); os._exit(0)"])
def test_code_that_ends_before_its_tests_does_not_pass(stop: str) -> None:
    assert pass_at_1(Answered(f"def add(a, b):\n    return a + b\n{stop}", row=MBPP)) == 0
    assert pass_at_1(Answered(f"def add(a, b):\n    {stop}", row=MBPP)) == 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("print('passed', flush=True); import os; os._exit(0)", "ended early"),
        ("import sys; sys.stdout.close(); raise ValueError('x')", "ValueError: x"),
        ("while True: pass", "not done after 1 s"),
        ("import time; time.sleep(60)", "not done after 1 s"),
        ("x = bytearray(10 ** 10)", "MemoryError"),
        ("x = [0]\nwhile True: x += x", "MemoryError"),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "PermissionError: socket"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')", "is not allowed here"),
        ("import os; os.system('true')", "PermissionError: os.system"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError: subprocess"),
        ("import os\nwhile True: os.fork()", "PermissionError: os.fork"),
        ("import multiprocessing; multiprocessing.Process(target=print).start()", "PermissionError"),
        ("import multiprocessing as m; m.get_context('spawn').Process(target=print).start()", "PermissionError"),
        ("import ctypes; ctypes.CDLL(None)", "PermissionError"),
        ("import os; os.kill(os.getppid(), 0)", "PermissionError: os.kill"),
        ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()", "new thread"),
        ("def f(): f()\nf()", "RecursionError"),
        ("open('big', 'w').write('x' * 10 ** 8)", "File too large"),
        ("while True: print('x' * 10 ** 5)", "not done after 1 s"),
        ("import os; assert 'PATH' in os.environ", "AssertionError"),
        ("input()", "RuntimeError"),
        ("import pytest", "ModuleNotFoundError"),
        ("import sys; assert not sys.flags.isolated", "AssertionError"),
        ("assert False, '\\ud800'", ""),
    ],
)
def test_code_that_misbehaves_fails_and_harms_nothing(code: str, reason: str) -> None:
    started = time.perf_counter()
    outcome = run_code(code, seconds=1 if reason.startswith("not done") else 20, memory=1 << 28)
    assert not outcome.ok and reason in outcome.reason
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    "code",
    [
        "open(outside + '/new', 'w')",
        "open(os.fsencode(outside + '/new'), 'w')",
        "pathlib.Path(outside, 'kept').write_text('')",
        "open(outside + '/kept', 'a').write('x')",
        "os.open(outside + '/new', os.O_CREAT | os.O_WRONLY)",
        "os.symlink(outside, 'link'); open('link/new', 'w')",
        "os.makedirs('a/b'); os.chdir('a/b'); os.symlink('../..', '../../up'); open('../../up/new', 'w')",
        "os.link(outside + '/kept', 'link')",
        "os.chdir(outside); open('new', 'w')",
        "os.chdir(outside); open(pathlib.Path('..') / pathlib.Path(outside).name / 'new', 'w')",
        "os.truncate(outside + '/kept', 0)",
        "os.utime(outside + '/kept', (0, 0))",
        "os.chmod(outside + '/kept', 0)",
        "os.remove(outside + '/kept')",
        "os.remove('kept', dir_fd=os.open(outside, os.O_RDONLY))",
        "os.rename(outside + '/kept', 'kept')",
        "open('new', 'w'); os.rename('new', outside + '/new')",
        "os.mkdir(outside + '/new')",
        "os.rmdir(outside + '/empty')",
        "os.mkfifo(outside + '/new')",
        "shutil.rmtree(outside)",
        "sqlite3.connect(outside + '/new').execute('create table a (b)')",
        "sqlite3.connect('file:' + outside + '/new', uri=True).execute('create table a (b)')",
    ],
)
def test_nothing_outside_of_its_folder_is_changed(code: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "empty").mkdir()

    def state() -> list[tuple]:
        return sorted((str(each), each.stat().st_mode, each.stat().st_mtime) for each in tmp_path.rglob("*"))

    before = state()
    outcome = run_code(f"import os, pathlib, shutil, sqlite3\noutside = {str(tmp_path)!r}\n{code}")
    assert not outcome.ok and outcome.reason.startswith("PermissionError")
    assert state() == before and (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize(
    "code",
    [
        "import tempfile\nwith tempfile.NamedTemporaryFile('w') as file: file.write('x')",
        "import tempfile\nwith tempfile.TemporaryDirectory() as folder: open(folder + '/a', 'w').write('x')",
        "import os\nopen('a', 'w').close(); os.rename('a', 'b'); os.remove('b'); os.mkdir('c'); os.rmdir('c')",
        "import os\nopen(os.devnull, 'w').write('x' * 10 ** 7)",
        "import os, shutil\nos.makedirs('a/b'); open('a/b/c', 'w').close(); shutil.rmtree('a')",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
        "import sqlite3\nsqlite3.connect(':memory:').execute('create table a (b)')",
        "import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))",
        "import typing\nclass A:\n    x: 'B'\nclass B: pass\nassert typing.get_type_hints(A)['x'] is B",
        "from concurrent.futures import ThreadPoolExecutor\nassert [*ThreadPoolExecutor().map(abs, [-1])] == [1]",
        "import atexit, sys\natexit.register(print, 'bye'); sys.stdout.close()",
        "print('x' * 10 ** 7, '\N{SNOWMAN}')",
        "if __name__ == '__main__': input()",
    ],
)
def test_what_the_standard_library_can_do_in_a_folder_works(code: str) -> None:
    outcome = run_code(code)
    assert outcome.ok, outcome.reason


@pytest.mark.skipif(not shutil.which("unshare"), reason="only Linux has namespaces")
def test_the_network_is_one_of_its_own_where_the_system_lets_it() -> None:
    def differs(kind: str) -> bool:
        link = f"/proc/self/ns/{kind}"
        return run_code(f"import os; assert os.readlink({link!r}) != {os.readlink(link)!r}").ok

    if subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody have namespaces")
    assert differs("user") and differs("net") and not differs("mnt")


def test_files_in_its_own_folder_are_its_own() -> None:
    assert run_code("open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'").ok
    assert run_code("import os; assert os.listdir('.') == []").ok
