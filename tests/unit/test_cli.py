"""The command line itself: instant help, exit codes, one JSON object."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tunekit.cli import app

HEAVY = ("torch", "transformers", "datasets", "peft", "numpy")
VERBS = (
    "sft",
    "launch",
    "preview",
    "check",
    "show",
    "init",
    "schema",
    "convert",
    "diff",
    "chat",
    "generate",
    "merge",
    "env",
)


def test_help_of_every_verb_has_an_example_and_imports_nothing_heavy() -> None:
    script = f"""
import sys
from typer.testing import CliRunner
from tunekit.cli import app
for verb in {VERBS}:
    said = CliRunner().invoke(app, [verb, "--help"]).output
    assert "Example" in said and "tunekit " + verb in said, said
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["chat", "tiny-random/llama", "--prompt", "x", "--top-p", "0.5"], 2, "no effect at temperature 0"),
        (["chat", "tiny-random/llama", "--prompt", " "], 2, "--prompt is empty"),
        (["chat", "tiny-random/lama", "--prompt", "x"], 2, "Near: llama"),
        (["chat", "./nowhere", "--prompt", "x"], 2, "does not exist"),
        (["chat", "nobody/nothing", "--prompt", "x"], 7, "cannot be had from the hub"),
        (["generate", "tiny-random/llama", "--input", "/nowhere/a.jsonl"], 3, "no such file"),
        (["generate", "tiny-random/llama"], 2, "either --prompt"),
        (["generate", "tiny-random/llama", "--prompt", "x", "--temperature", "-1"], 2, "Invalid value"),
        (["merge", "tiny-random/llama"], 2, "there is no adapter to merge"),
    ],
)
def test_a_users_mistake_is_a_message_and_an_exit_code(arguments: list[str], exit_code: int, said: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == exit_code
    assert said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_failure_with_json_is_one_json_object() -> None:
    done = CliRunner().invoke(app, ["merge", "./nowhere", "--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout)["exit_code"] == 2


def test_env_reports_and_this_installation_passes_its_check() -> None:
    done = CliRunner().invoke(app, ["env", "--check", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["problems"] == []
    assert "device" in CliRunner().invoke(app, ["env"]).stdout
