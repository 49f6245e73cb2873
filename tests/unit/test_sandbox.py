"""Code of a model passes by its tests alone, and cannot do what it should not."""

import time
from pathlib import Path

import pytest

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
        ("import ctypes; ctypes.CDLL(None)", "PermissionError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("open('/tmp/tunekit-sandbox-escape', 'w').write('x')", "PermissionError: writing outside"),
        ("open('../escape', 'w').write('x')", "PermissionError: writing outside"),
        (
            "import os; os.open('/tmp/tunekit-sandbox-escape', os.O_CREAT | os.O_WRONLY)",
            "PermissionError: writing outside",
        ),
        ("import shutil; shutil.rmtree('/tmp/x')", "PermissionError"),
        ("import os; os.remove('/tmp/x')", "PermissionError"),
        ("open('big', 'w').write('x' * 10 ** 8)", "File too large"),
        ("while True: print('x' * 10 ** 5)", "File too large"),
        ("import os; assert 'PATH' in os.environ", "AssertionError"),
        ("input()", "RuntimeError"),
        ("assert False, '\\ud800'", ""),
    ],
)
def test_code_that_misbehaves_fails_and_harms_nothing(code: str, reason: str) -> None:
    started = time.perf_counter()
    outcome = run_code(code, seconds=1)
    assert not outcome.ok and reason in outcome.reason
    assert time.perf_counter() - started < 5
    assert not Path("/tmp/tunekit-sandbox-escape").exists()


def test_files_in_its_own_folder_are_its_own() -> None:
    assert run_code("open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'").ok
    assert run_code("import os; assert os.listdir('.') == []").ok
