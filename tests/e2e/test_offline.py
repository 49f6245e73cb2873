"""`--offline`: no connection is tried, and what is missing is listed before anything starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Runs a command of tunekit and prints what it asked the network for; refused attempts are seen too.
WATCHED = """
import sys
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.append(event)
sys.addaudithook(watch)
from tunekit.cli import app
try:
    app(sys.argv[1:])
except SystemExit as leaving:
    print("CODE", leaving.code, "ASKED", asked)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, *words]
    environment = {"PATH": "", "HOME": str(folder)}  # no switch of the libraries: the option alone must do it
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        "model: tiny-random/llama\nadapter: lora\ndata: rows.jsonl\ntrain: {max_steps: 1}\noutput_dir: out\n"
    )
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("verb", ["preview", "check", "sft"])
def test_a_local_recipe_asks_the_network_for_nothing(recipe: Path, verb: str) -> None:
    done = run(recipe.parent, verb, recipe.name, "--offline")
    assert "CODE 0 ASKED []" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("verb", ["preview", "sft"])
def test_all_that_is_missing_is_listed_before_anything_starts(recipe: Path, verb: str) -> None:
    overrides = ("model=nobody/nothing", "data.eval=someone/else", "data.train=no/body")
    done = run(recipe.parent, verb, recipe.name, *overrides, "--offline")
    assert "CODE 7 ASKED []" in done.stdout
    for missing in ("model: nobody/nothing", "data: no/body", "data: someone/else"):
        assert missing in done.stderr
    assert not (recipe.parent / "out").exists()


def test_a_builtin_model_that_is_not_built_is_listed(recipe: Path) -> None:
    done = run(recipe.parent, "sft", recipe.name, "model=smollm2-135m-instruct", "--offline")
    assert (
        "CODE 7 ASKED []" in done.stdout
        and "smollm2-135m-instruct: the built-in model has not been built" in done.stderr
    )
