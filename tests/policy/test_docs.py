"""What README, docs and recipes show must work: every recipe trains and every command runs, on a tiny model."""

import contextlib
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from commands import tunekit
from preferences import unprove

from tunekit.errors import RecipeError
from tunekit.recipe.load import load

ROOT = Path(__file__).parents[2]
SHORT = ("data.eval=null", "data.eval_split=2", "eval.tasks=[]")  # of what online training measures
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(tunekit .+)$", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S)), re.M)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes and example data as a user finds them, but for the model: a tiny random one."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "recipes").mkdir()
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        text = recipe.read_text()
        assert "smollm2-135m-instruct" in text
        (folder / "recipes" / recipe.name).write_text(text.replace("smollm2-135m-instruct", "tiny-random/llama"))
    return folder


def test_every_command_of_the_readme_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unprove(monkeypatch)
    assert any(command.startswith("tunekit sft recipes/chat.yaml") for command in COMMANDS)
    run(checkout, "tunekit sft recipes/chat.yaml")  # what `make chat` does first
    for command in COMMANDS:
        run(checkout, command)


def test_the_other_pages_show_what_the_commands_print(checkout: Path) -> None:
    page = (ROOT / "docs" / "check.md").read_text()
    shown = page.split("$ tunekit preview recipes/chat.yaml -n 1\n")[1].split("...\n")[0]
    words = ["preview", str(ROOT / "recipes" / "chat.yaml"), "-n", "1"]
    assert invoked(ROOT, words).startswith(shown)
    shown = page.split("$ tunekit check recipes/chat.yaml\n")[1].split("```")[0]
    printed = invoked(checkout, ["check", "recipes/chat.yaml", "output_dir=out/elsewhere"])
    assert [line.split()[:2] for line in printed.splitlines()] == [line.split()[:2] for line in shown.splitlines()]
    page = (ROOT / "docs" / "recipe-files.md").read_text()
    shown = page.split("$ tunekit sft recipe.yaml\nerror: ")[1].split("```")[0]
    (checkout / "recipe.yaml").write_text(
        "model: m\ndata: d\ntrain:\n  lerning_rate: 5e-4\n  micro_batch_size: 4\noutput_dir: o\n"
    )
    with pytest.raises(RecipeError) as caught, contextlib.chdir(checkout):
        load("recipe.yaml")
    assert str(caught.value).strip() == shown.strip()


def test_every_shipped_recipe_is_in_the_readme_or_the_makefile() -> None:
    shown = " ".join(COMMANDS) + (ROOT / "Makefile").read_text()
    assert all(f"recipes/{recipe.name}" in shown for recipe in (ROOT / "recipes").glob("*.yaml"))


def test_the_readme_shows_the_recipe_as_it_is() -> None:
    assert (ROOT / "recipes" / "chat.yaml").read_text().strip() in README


def test_the_page_of_recipe_keys_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_recipe_page.py"))["page"]()
    assert (ROOT / "docs" / "recipe.md").read_text() == page, "run: python docs/make_recipe_page.py"


@pytest.mark.parametrize("target", ["chat", "test"])
def test_the_two_commands_are_make_targets(target: str) -> None:
    assert f"make {target}" in README and re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def invoked(folder: Path, words: list[str]) -> str:
    process = tunekit(*words, folder=folder)
    assert process.returncode == 0, process.stderr
    return process.stdout


def run(folder: Path, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "sft":
        words += ["train.max_steps=1", "data.eval=null", "data.eval_split=2"]
        words += ["eval.max_new_tokens=4"] if "metrics" in (folder / words[1]).read_text() else []
    if words[0] in ("dpo", "kto", "reward"):
        words += ["train.max_steps=1"]
        words += ["eval.task_limit=2"] if "tasks" in (folder / words[1]).read_text() else []
    if words[0] == "eval":
        words = [*(word.replace("smollm2-135m-instruct", "tiny-random/llama") for word in words), "--limit", "2"]
    if words[0] == "gate":
        words = [word.replace("eval_loss < 1.2", "eval_loss < 99") for word in words]
    if words[0] == "chat":
        words += ["--max-new-tokens", "4"]
    if words[0] == "generate":
        words += ["--max-new-tokens", "4"]
    if words[0] in ("ppo", "grpo", "rloo"):
        words += ["train.max_steps=2", "rollout.max_new_tokens=8", "rollout.num_prompts=2", *SHORT]
    if words[0] == "run" and "--dry-run" not in words:
        words += [f"stages.{name}.train.max_steps=1" for name in ("sft", "reward", "ppo")]
        words += ["stages.ppo.rollout.num_prompts=4", *(f"stages.ppo.{each}" for each in SHORT)]
    process = tunekit(*words, folder=folder)
    assert process.returncode == 0, f"{line}\n{process.stderr}"
