"""What differs between two recipes or runs is listed with its origins, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.diff import as_text, compare
from tunekit.recipe.load import load
from tunekit.recipe.show import dump

A = "model: m\nadapter: lora\ndata: d.jsonl\noutput_dir: o\n"
A_IN_FULL = "model: {name_or_path: m}\nadapter: {type: lora, r: 16}\ndata: {train: [d.jsonl]}\noutput_dir: o\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    return name


def run(name: str, text: str, manifest: dict[str, Any] | None) -> str:
    """The folder of a run as `sft` leaves it."""
    write("r.yaml", text)
    write(f"{name}/recipe.yaml", dump(load("r.yaml").recipe))
    if manifest is not None:
        write(f"{name}/manifest.json", json.dumps(manifest))
    return name


def keys(comparison: dict[str, Any]) -> set[str]:
    return {item["key"] for item in comparison["differences"]}


def test_equal_recipes_say_so_however_they_are_written() -> None:
    long = A_IN_FULL
    comparison = compare(write("a.yaml", A), write("b.yaml", long))
    assert comparison["differences"] == [] and comparison["compared"] > 50
    assert as_text(comparison) == f"equal: all {comparison['compared']} values of a.yaml and b.yaml"


def test_each_difference_has_both_values_and_where_they_come_from() -> None:
    write("base.yaml", A + "train: {seed: 7}\n")
    other = write("b.yaml", "extends: base.yaml\nadapter: {r: 4}\ndata: {system: 'a: b'}\n")
    comparison = compare(write("a.yaml", A), other)
    assert {item["key"]: tuple(item.values())[1:] for item in comparison["differences"]} == {
        "adapter.r": (16, 4, "default", "b.yaml:2"),
        "adapter.alpha": (32.0, 8.0, "derived", "derived"),
        "data.system": (None, "a: b", "default", "b.yaml:3"),
        "train.seed": (42, 7, "default", "base.yaml:5"),
    }
    lines = as_text(comparison).splitlines()
    assert lines[0].split() == ["a.yaml", "b.yaml"] and lines[-1] == f"4 of {comparison['compared']} values differ"
    assert any(line.split() == ["adapter.r", "16", "(default)", "4", "(b.yaml:2)"] for line in lines)
    assert json.loads(json.dumps(comparison)) == comparison


def test_a_source_that_only_one_has_is_shown_by_what_was_said_of_it() -> None:
    other = A.replace("d.jsonl", "{train: [d.jsonl, {path: o/x, split: s, columns: {q: a}}], eval: e.jsonl}")
    comparison = compare(write("a.yaml", A), write("b.yaml", other))
    assert keys(comparison) == {
        "data.train.1.path",
        "data.train.1.split",
        "data.train.1.columns.q",
        "data.eval.0.path",
        "data.eval_split",
    }
    assert "(none)" in as_text(comparison)


def test_a_list_of_plain_values_is_one_value() -> None:
    one, other = A + "report_to: [wandb, mlflow]\n", A + "report_to: [wandb]\neval: {metrics: [exact_match]}\n"
    comparison = compare(write("a.yaml", one), write("b.yaml", other))
    assert {item["key"]: (item["left"], item["right"]) for item in comparison["differences"]} == {
        "report_to": (["wandb", "mlflow"], ["wandb"]),
        "eval.metrics": ([], ["exact_match"]),
    }


def test_runs_differ_in_their_manifests_too() -> None:
    facts = {"versions": {"torch": "2.1", "peft": "0.2"}, "data": {"train": {"rows": 3, "sha256": "a"}}, "git": None}
    one = run("one", A, facts)
    two = run("two", A.replace("m\n", "n\n"), {**facts, "versions": {"torch": "2.2"}, "base_model": {"sha": "x"}})
    assert keys(compare(one, two)) == {
        "model.name_or_path",
        "manifest.json:versions.torch",
        "manifest.json:versions.peft",
        "manifest.json:base_model.sha",
    }
    assert keys(compare(one, write("b.yaml", A))) == set(), "a recipe has no manifest to compare with"
    assert keys(compare(one, run("three", A, None))) == set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.yaml", "none.yaml: no such file"),
        ("empty", "empty: holds no recipe.yaml"),
        ("bad", "cannot be read as JSON"),
    ],
)
def test_what_is_no_recipe_and_no_run_is_refused(name: str, message: str) -> None:
    Path("empty").mkdir()
    run("bad", A, {})
    Path("bad/manifest.json").write_text("{")
    with pytest.raises(RecipeError, match=message):
        compare(write("a.yaml", A), name)
