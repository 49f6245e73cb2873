"""A training run that measures tasks before and after, and is held to its gates."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.errors import GateFailed, RecipeError
from tunekit.recipe.load import load
from tunekit.stages import artefact, sft

ROWS = [{"prompt": f"Say {i}:", "completion": "yes"} for i in range(12)]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def write(*arguments: Any) -> float:
        (arguments[2]).mkdir()  # the proof of the artefact costs a process of ten seconds
        (arguments[2] / "README.md").write_text(arguments[5])
        return 0.0

    monkeypatch.setattr(artefact, "write_artefact", write)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {"task": "mine", "kind": "multiple_choice", "data": {"path": "rows.jsonl"}, "prompt": "{{ prompt }}",
            "choices": ["no way", "yes"], "answer": "yes", "delimiter": "", "metrics": ["accuracy"]}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    content = {
        "model": {"name_or_path": "tiny-random/llama", "dtype": "float32"},
        "adapter": "lora",
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval_split": 2},
        "train": {"max_steps": 6, "learning_rate": 0.02},
        "eval": {"tasks": [str(tmp_path / "mine.yaml"), "blimp"], "task_limit": 10, "steps": 3},
        "gate": {"eval_loss": "< before", "mine.accuracy": ">= 0.5"},
        "save": {"steps": 2, "total_limit": 9},
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "r.yaml"


def run(recipe: Path, *overrides: str) -> dict[str, Any]:
    return sft.run(load(recipe, overrides))


def test_tasks_are_measured_before_and_after_and_what_changed_is_said(recipe: Path) -> None:
    result = run(recipe)
    tasks = result["tasks"]
    assert tasks["before"].keys() == tasks["after"].keys() == tasks["change"].keys() == {"mine", "blimp"}
    change = tasks["change"]["mine"]["accuracy"]
    after, before = (tasks[when]["mine"]["scores"]["accuracy"]["value"] for when in ("after", "before"))
    assert change["value"] == pytest.approx(after - before) and change["n"] == 10
    assert tasks["before"]["mine"]["leakage"]["items"] == 0, "too short to tell"
    assert [each["passed"] for each in result["gates"]] == [True, True]
    folder = recipe.parent / "out"
    assert {path.name for path in (folder / "items").iterdir()} == {
        f"{name}.{when}.jsonl" for name in ("mine", "blimp") for when in ("before", "after")
    }
    assert "| mine accuracy (n = 10) |" in (folder / "model" / "README.md").read_text()


def test_a_gate_that_fails_ends_the_run_with_its_code_and_the_model_is_there(recipe: Path) -> None:
    with pytest.raises(GateFailed, match=r"mine\.accuracy > 2"):
        run(recipe, 'gate={mine.accuracy: "> 2"}')
    folder = recipe.parent / "out"
    result = json.loads((folder / "result.json").read_text())
    assert (result["exit_code"], result["status"]) == (8, "failed") and (folder / "model").is_dir()
    assert CliRunner().invoke(app, ["gate", str(folder)]).exit_code == 8
    assert CliRunner().invoke(app, ["gate", str(folder), "--gate", "eval_loss < before"]).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0


def test_a_gate_about_what_is_not_measured_is_refused_before_training(recipe: Path) -> None:
    for gate in ("svamp.numeric", "mine.acc", "loss"):
        with pytest.raises(RecipeError, match="the run will have no such figure"):
            run(recipe, f'gate={{{gate}: "> 0"}}')
    assert not (recipe.parent / "out" / "checkpoints").exists()


def test_tasks_are_measured_at_evaluations_if_asked(recipe: Path) -> None:
    run(recipe, "eval.tasks_at=evaluations")
    rows = [json.loads(line) for line in (recipe.parent / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "mine.accuracy" in row] == [0, 3, 6]


def test_a_resumed_run_compares_with_what_was_before_the_kill(recipe: Path) -> None:
    whole = run(recipe)
    folder = recipe.parent / "out"
    for name in ("step-4", "step-6"):
        for path in sorted((folder / "checkpoints" / name).iterdir()):
            path.unlink()
        (folder / "checkpoints" / name).rmdir()
    (folder / "model" / "README.md").unlink()
    (folder / "model").rmdir()
    again = run(recipe, "resume=auto")
    for key in ("before", "after"):
        for name in ("mine", "blimp"):
            assert again["tasks"][key][name]["scores"] == whole["tasks"][key][name]["scores"]
    assert again["tasks"]["change"] == whole["tasks"]["change"]


def test_a_task_that_is_not_there_is_found_by_check(recipe: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(recipe), "eval.tasks=[blmp]"])
    assert done.exit_code == 2 and "did you mean blimp" in done.output
