"""Paths in a recipe: a leading `~` is the home of a user, variables are refused, and a recipe is a file of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.load import load, load_text
from tunekit.recipe.show import dump

TEXT = """\
model: ~/models/m
data: {train: [~/a.jsonl, {path: o/b, data_files: [~/x, y]}], eval: ~/e.jsonl, chat_template: ~/t.jinja}
output_dir: ~/out
resume: ~/out/checkpoints/step-3
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


def test_a_tilde_is_the_home_folder_in_every_path(home: str) -> None:
    recipe = load_text(TEXT, "r.yaml").recipe
    paths = [recipe.model.name_or_path, recipe.data.chat_template, recipe.output_dir, recipe.resume]
    assert paths == [f"{home}/{end}" for end in ("models/m", "t.jinja", "out", "out/checkpoints/step-3")]
    assert recipe.data.eval is not None
    sources = [source.path for source in [*recipe.data.train, *recipe.data.eval]]
    assert sources == [f"{home}/a.jsonl", "o/b", f"{home}/e.jsonl"]
    assert recipe.data.train[1].data_files == [f"{home}/x", "y"]
    assert load_text(dump(recipe), "r.yaml").recipe == recipe


def test_a_tilde_is_expanded_in_overrides_and_bases_and_only_at_the_beginning(home: str) -> None:
    Path("base.yaml").write_text(TEXT)
    Path("r.yaml").write_text("extends: ~/base.yaml\nrun_name: ~x\n")
    resolved = load("r.yaml", ["output_dir=~/other", "model=a/~b"])
    assert (resolved.recipe.output_dir, resolved.recipe.model.name_or_path) == (f"{home}/other", "a/~b")
    assert (resolved.origins["output_dir"], resolved.recipe.run_name) == ("override", "~x")


@pytest.mark.parametrize("value", ["$DATA/x", "${DATA}/x", "out/$DATA", "~/$DATA"])
@pytest.mark.parametrize("key", ["output_dir", "model", "resume", "data.chat_template", "data.train", "data.eval"])
def test_no_path_holds_a_variable(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=r"environment variables are not expanded; write it out, or let the shell"):
        load_text_with(f"{key}={value}")


def load_text_with(override: str) -> None:
    Path("r.yaml").write_text(TEXT)
    load("r.yaml", [override])


def test_a_dollar_that_begins_no_variable_and_text_that_is_no_path_are_kept() -> None:
    text = TEXT.replace("output_dir: ~/out", 'output_dir: "a$/b"').replace(
        "chat_template", "system: cost is $x, chat_template"
    )
    recipe = load_text(text, "r.yaml").recipe
    assert (recipe.output_dir, recipe.data.system) == ("a$/b", "cost is $x")


def test_a_pipe_as_a_recipe_is_refused_and_not_waited_for() -> None:
    os.mkfifo("pipe")
    command = [sys.executable, "-m", "tunekit", "show", "pipe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2 and done.stderr.startswith("error: pipe: is a pipe and no file")


@pytest.mark.parametrize(
    ("resume", "accepted"),
    [
        ("step-3", True),
        ("a/b", True),
        ("./c", True),
        ("auto", True),
        ("never", True),
        ("step-x", False),
        ("last", False),
    ],
)
def test_resume_is_auto_never_or_looks_like_a_path(resume: str, accepted: bool) -> None:
    text = TEXT.replace("~/out/checkpoints/step-3", resume)
    if accepted:
        assert load_text(text, "r.yaml").recipe.resume == resume
        return
    with pytest.raises(RecipeError, match="must be 'auto' or 'never', or the path of a checkpoint"):
        load_text(text, "r.yaml")
