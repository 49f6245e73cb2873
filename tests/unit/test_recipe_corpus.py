"""Hundreds of recipes that are wrong in one way: each is refused with exit code 2, its place and what to do."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus.recipes.malformed import CASES, Case

from tunekit.errors import RecipeError
from tunekit.recipe.load import load

LIMIT = 3.0  # seconds; the largest file that is read takes a fifth of it
THROUGH_THE_COMMAND = [name for name in CASES if "\0" not in name][:: len(CASES) // 14]


def write(folder: Path, case: Case) -> Path:
    for name, text in {"r.yaml": case.text, **case.files}.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "r.yaml"


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_recipe_is_refused_with_the_words_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = CASES[name]
    write(tmp_path, case)
    monkeypatch.chdir(tmp_path)
    started = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", case.overrides)
    assert time.perf_counter() - started < LIMIT
    assert caught.value.exit_code == 2
    said = f"{caught.value}\n"
    assert re.match(r"([\w.]+\.yaml|override)\b", said), "the place comes first"
    for words in case.words:
        assert words in said
    assert all(len(line) < 400 for line in said.splitlines())


@pytest.mark.parametrize("name", THROUGH_THE_COMMAND)
def test_the_command_exits_with_2_and_makes_no_folder(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    write(tmp_path, case)
    verb = "show" if name.startswith("stage: ") else "sft"  # which says first that those are for another command
    command = [sys.executable, "-m", "tunekit", verb, "r.yaml", "--", *case.overrides]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert time.perf_counter() - started < LIMIT
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert all(words in done.stderr for words in case.words)
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml", *case.files}
