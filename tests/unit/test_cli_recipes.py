"""The verbs about recipes as a user calls them: which stream, which exit code, and no file that is overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from tunekit.cli import app
from tunekit.recipe.load import load

GOOD = "model: m\nadapter: lora\ndata: d.jsonl\noutput_dir: o\n"
AXOLOTL = (
    "base_model: org/m\nsequence_len: 512\nload_in_4bit: true\ndatasets: [{path: org/d, type: alpaca}]\noutput_dir: o\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tunekit(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_init_prints_a_recipe_or_writes_it_once_and_never_over_a_file() -> None:
    printed = tunekit("init")
    written = tunekit("init", "--output", "recipe.yaml")
    assert printed.exit_code == written.exit_code == 0
    assert Path("recipe.yaml").read_text() == printed.stdout
    assert "recipe.yaml: edit it, then: tunekit show recipe.yaml" in written.stdout
    assert load("recipe.yaml").recipe.data.train[0].path == "data.jsonl"
    Path("recipe.yaml").write_text(GOOD)
    again = tunekit("init", "--output", "recipe.yaml")
    assert again.exit_code == 2 and "exists already" in again.stderr
    assert Path("recipe.yaml").read_text() == GOOD


def test_init_takes_a_model_and_data_and_names_the_stages_that_there_are() -> None:
    assert tunekit("init", "--model", "org/m", "--data", "x.jsonl", "--output", "r.yaml").exit_code == 0
    recipe = load("r.yaml").recipe
    assert (recipe.model.name_or_path, recipe.data.train[0].path) == ("org/m", "x.jsonl")
    wrong = tunekit("init", "--stage", "sftt")
    assert (
        wrong.exit_code == 2
        and "did you mean sft?" in wrong.stderr
        and "This version has: sft, reward, dpo, kto, ppo, grpo, rloo." in wrong.stderr
    )


def test_schema_prints_json_or_writes_it_again_and_again() -> None:
    printed = tunekit("schema").stdout
    Draft202012Validator.check_schema(json.loads(printed))
    for _ in range(2):
        assert tunekit("schema", "--output", "s.json").exit_code == 0
    assert Path("s.json").read_text() == printed


def test_convert_prints_the_recipe_alone_and_says_the_rest_on_the_other_stream() -> None:
    Path("axolotl.yml").write_text(AXOLOTL)
    done = tunekit("convert", "axolotl.yml")
    assert done.exit_code == 0
    assert done.stderr.startswith("axolotl.yml: axolotl, by its keys base_model, sequence_len\n")
    assert "load_in_4bit: true  # needs adapter: lora, as quantised weights cannot be trained" in done.stderr
    Path("r.yaml").write_text(done.stdout)
    assert load("r.yaml").recipe.data.max_length == 512
    assert tunekit("convert", "axolotl.yml", "--output", "r2.yaml").stdout == ""
    assert Path("r2.yaml").read_text() == done.stdout
    again = tunekit("convert", "axolotl.yml", "--output", "r2.yaml")
    assert again.exit_code == 2 and "exists already" in again.stderr
    assert tunekit("convert", "axolotl.yml", "--from", "trl").stderr.startswith("axolotl.yml: TRL, as --from says")
    assert tunekit("convert", "axolotl.yml", "--from", "x").exit_code == 2


def test_diff_prints_what_differs_and_exits_with_0_either_way() -> None:
    Path("a.yaml").write_text(GOOD)
    Path("b.yaml").write_text(GOOD + "train: {seed: 1}\n")
    same, other = tunekit("diff", "a.yaml", "a.yaml"), tunekit("diff", "a.yaml", "b.yaml", "--json")
    assert same.exit_code == other.exit_code == 0 and same.stdout.startswith("equal: all ")
    assert [item["key"] for item in json.loads(other.stdout)["differences"]] == ["train.seed"]
    failed = tunekit("diff", "a.yaml", "c.yaml", "--json")
    assert failed.exit_code == 2 and json.loads(failed.stdout)["exit_code"] == 2


def test_show_prints_a_recipe_with_its_bases_and_overrides() -> None:
    Path("base.yaml").write_text(GOOD)
    Path("r.yaml").write_text("# yaml-language-server: $schema=s.json\nextends: base.yaml\ntrain: {seed: 1}\n")
    shown = json.loads(tunekit("show", "r.yaml", "save.steps=5", "--set", "~train.seed", "--json").stdout)
    assert shown["recipe"]["train"]["seed"] == 42
    origins = {key: shown["origins"][key] for key in ("model.name_or_path", "train.seed", "save.steps")}
    assert origins == {"model.name_or_path": "base.yaml:1", "train.seed": "default", "save.steps": "override"}


@pytest.mark.parametrize("verb", ["init", "schema", "convert"])
def test_a_file_that_cannot_be_written_is_an_error_of_storage(verb: str) -> None:
    Path("axolotl.yml").write_text(AXOLOTL)
    arguments = ["axolotl.yml"] if verb == "convert" else []
    failed = tunekit(verb, *arguments, "--output", "nowhere/x.yaml")
    assert failed.exit_code == 4 and "--output nowhere/x.yaml: cannot be written" in failed.stderr
    assert failed.stdout == ""


def test_no_verb_about_recipes_loads_a_heavy_library() -> None:
    Path("a.yaml").write_text(GOOD)
    Path("axolotl.yml").write_text(AXOLOTL)
    script = """
import sys
from typer.testing import CliRunner
from tunekit.cli import app
for words in (["init"], ["schema"], ["convert", "axolotl.yml"], ["diff", "a.yaml", "a.yaml"], ["show", "a.yaml"]):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = CliRunner().invoke(app, [words[0], "--help"]).output
    assert "Example" in said and "tunekit " + words[0] in said, said
print(sorted({"torch", "transformers", "datasets", "peft", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
