"""Gates pass where they should and never where there is nothing to compare."""

import json
import logging
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.errors import RecipeError, StorageError
from tunekit.evals.gates import Verdict, check, failure, parse, parse_line
from tunekit.evals.junit import junit
from tunekit.recipe.types import CONDITION
from tunekit.stages import gate


def score(value: float | None, low: float = 0.3, high: float = 0.6) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 50, "interval": "wilson", "better": "higher"}


def task(value: float | None) -> dict[str, Any]:
    return {"scores": {"accuracy": score(value)}, "groups": {"accuracy": {"island effects": score(0.25)}}}


TRAINED: dict[str, Any] = {
    "stage": "sft",
    "exit_code": 0,
    "before": {"eval_loss": 2.0},
    "after": {"eval_loss": 1.5, "eval_exact_match": math.nan},
    "tasks": {"before": {"blimp": task(0.5)}, "after": {"blimp": task(0.45)}},
    "tokens_per_second": 812.5,
}
MEASURED: dict[str, Any] = {"stage": "eval", "exit_code": 0, "tasks": {"blimp": task(0.45), "none": task(None)}}


@pytest.mark.parametrize(
    ("line", "passed", "reason"),
    [
        ("eval_loss < 1.9", True, "1.5 is < 1.9"),
        ("eval_loss < 1.5", False, "1.5 is not < 1.5"),
        ("eval_loss <= 1.5", True, "1.5 is <= 1.5"),
        ("eval_loss == 1.5", True, "1.5 is == 1.5"),
        ("eval_loss < before * 0.7", False, "is not < 1.4 (before 2)"),
        ("eval_loss < before - 0.4", True, "is < 1.6 (before 2)"),
        ("tokens_per_second > 1e3", False, "812.5 is not > 1000"),
        ("blimp.accuracy >= 0.4", True, "0.45 [0.3, 0.6] is >= 0.4; passed, but the bound is within the interval"),
        ("blimp.accuracy >= 0.2", True, "0.45 [0.3, 0.6] is >= 0.2"),
        ("blimp.accuracy >= before - 0.01", False, "is not >= 0.49 (before 0.5)"),
        (
            "blimp.accuracy >= before - 0.06",
            True,
            "is >= 0.44 (before 0.5); passed, but the bound is within the interval",
        ),
        ("blimp.accuracy.island effects > 0.2", True, "0.25 [0.3, 0.6] is > 0.2"),
        ("eval_loss < before - 1e-1", True, "1.5 is < 1.9 (before 2)"),
        ("eval_loss <= 1.49999", False, "1.5 is not <= 1.49999"),
        ("blimp.acuracy >= 0.4", False, "no such figure; did you mean blimp.accuracy"),
        ("eval_exact_match > 0.1", False, "nan, which is no number"),
        ("blimp.accuracy >= baseline", False, "there is no baseline (--baseline OTHER/result.json)"),
    ],
)
def test_a_training_run(line: str, passed: bool, reason: str) -> None:
    (verdict,) = check([parse_line(line)], TRAINED)
    assert verdict.passed is passed and reason in verdict.reason
    assert ("within the interval" in verdict.reason) == ("within the interval" in reason)


@pytest.mark.parametrize(
    ("line", "passed", "reason"),
    [
        ("blimp.accuracy >= baseline - 0.06", True, "is >= 0.44 (baseline 0.5)"),
        ("blimp.accuracy >= baseline", False, "is not >= 0.5 (baseline 0.5)"),
        ("blimp.accuracy >= before", False, "before has no such figure"),
        ("none.accuracy >= 0", False, "its value is None, which is no number"),
    ],
)
def test_a_measured_model_and_a_baseline(line: str, passed: bool, reason: str) -> None:
    (verdict,) = check([parse_line(line)], MEASURED, {"exit_code": 0, "tasks": {"blimp": task(0.5)}})
    assert verdict.passed is passed and reason in verdict.reason


def test_a_baseline_without_the_figure_fails() -> None:
    (verdict,) = check([parse_line("blimp.accuracy >= baseline")], MEASURED, {"tasks": {}})
    assert not verdict.passed and "baseline has no such figure" in verdict.reason


@pytest.mark.parametrize("sign", ["<", "<=", "==", ">=", ">"])
def test_a_figure_that_is_the_bound_in_decimals_is_the_bound(sign: str) -> None:
    """In binary, 0.4 - 0.1 is more than 0.3, and for other hundredths less."""
    for hundredths in range(100):
        result = {"before": {"share": (hundredths + 1) / 100}, "after": {"share": hundredths / 100}}
        (verdict,) = check([parse_line(f"share {sign} before - 0.01")], result)
        assert verdict.passed is ("=" in sign), verdict


@pytest.mark.parametrize(
    ("line", "value", "low", "high", "doubtful"),
    [
        ("x >= 1", 1.0, 0.93, 1.0, True),  # all right, of 50
        ("x <= 0", 0.0, 0.0, 0.07, True),
        ("x == 0.5", 0.5, 0.4, 0.6, True),
        ("x >= 0.5", 0.5, 0.5, 0.5, False),
        ("x < 0.5", 0.4, 0.3, 0.5, False),
        ("x > 0.5", 0.4, 0.3, 0.6, False),  # it did not pass
    ],
)
def test_a_pass_says_where_its_interval_reaches_over_the_bound(
    line: str, value: float, low: float, high: float, doubtful: bool
) -> None:
    result = {"tasks": {"a": {"scores": {"x": score(value, low, high)}}}}
    (verdict,) = check([parse_line(f"a.{line}")], result)
    assert ("the bound is within the interval" in verdict.reason) is doubtful


@pytest.mark.parametrize("code", [1, 3, 10, 75])
def test_nothing_passes_against_a_baseline_that_failed(code: int) -> None:
    (verdict,) = check([parse_line("eval_loss < baseline + 9")], TRAINED, TRAINED | {"exit_code": code})
    assert not verdict.passed and f"the baseline did not end well: exit code {code}" in verdict.reason
    (verdict,) = check([parse_line("eval_loss < baseline + 9")], TRAINED, TRAINED | {"exit_code": 8})
    assert verdict.passed, "one that failed a gate was measured all the same"


@pytest.mark.parametrize(
    "result",
    [
        {"after": 3, "before": [1]},
        {"tasks": [1]},
        {"tasks": {"after": [1], "before": 1}},
        {"tasks": {"x": {}}},
        {"tasks": {"x": {"scores": [0.4], "groups": {"y": 1}}}},
        {"tasks": {"x": {"scores": {"y": 0.4}}}},
        {"tasks": {"x": {"scores": {"y": {"value": "0.4"}}}}},
        {"after": {"x.y": True}},
    ],
)
def test_a_file_of_another_shape_passes_nothing(result: dict[str, Any]) -> None:
    for verdict in check([parse_line("x.y > 0"), parse_line("x.y > before")], result, result):
        assert not verdict.passed and re.search("no such figure|no number", verdict.reason)


@pytest.mark.parametrize("code", [1, 3, 10, 75])
def test_nothing_passes_of_a_run_that_failed(code: int) -> None:
    (verdict,) = check([parse_line("eval_loss < 9")], TRAINED | {"exit_code": code})
    assert not verdict.passed and f"exit code {code}" in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "eval_loss",
        "eval_loss <",
        "eval_loss < x",
        "< 1",
        "eval_loss ~ 1",
        "a < 1.2.3",
        "a < after",
        "a < 1e999",
        "a => 1",
        "a < nan",
    ],
)
def test_what_is_no_gate_is_an_error_with_examples(text: str) -> None:
    with pytest.raises(RecipeError, match=r"eval_loss < 1\.9"):
        parse_line(text)


@pytest.mark.parametrize(
    "condition", ["< 1.9", ">=-0.5", " == 1e-3 ", "< before", "> before - 1e-3", "<= baseline*0.98"]
)
def test_what_a_recipe_accepts_is_a_condition(condition: str) -> None:
    assert re.fullmatch(CONDITION, condition)
    assert parse("eval_loss", condition).condition == condition.strip()


def test_the_error_names_each_gate_that_failed_with_its_figure() -> None:
    gates = [parse_line(line) for line in ("eval_loss < 1.9", "eval_loss < 1", "blimp.accuracy > 0.9")]
    error = failure(check(gates, TRAINED))
    assert error.exit_code == 8 and "2 of 3 gates failed" in str(error)
    assert "eval_loss < 1: 1.5 is not < 1" in str(error) and "blimp.accuracy > 0.9: 0.45 [0.3, 0.6]" in str(error)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps(TRAINED))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--gate", "eval_loss < 1.9"], 0, "pass  eval_loss < 1.9: 1.5 is < 1.9"),
        (["--gate", "eval_loss < 1.9", "--gate", "eval_loss < 1"], 8, "FAIL  eval_loss < 1: 1.5 is not < 1"),
        (["--gate", "eval_loss < baseline", "--baseline", "gone"], 8, "there is no baseline"),
        (["--gate", "eval_loss"], 2, "is no gate"),
        ([], 2, "no gate to check"),
    ],
)
def test_the_command_ends_with_the_code_that_a_pipeline_reads(
    result: Path, words: list[str], code: int, said: str
) -> None:
    done = CliRunner().invoke(app, ["gate", str(result), *words])
    assert done.exit_code == code and said in done.output


def test_a_baseline_that_is_not_there_is_said_also_where_no_gate_needs_it(
    result: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tunekit"):
        (verdict,) = gate.run(str(result), ["eval_loss < 1.9"], baseline="gone/result.json")
    assert verdict.passed and "gone/result.json: no such result" in caplog.text


def test_a_run_that_failed_before_its_gates_does_not_pass(result: Path) -> None:
    (result / "result.json").write_text(json.dumps({"exit_code": 10, "status": "failed"}))
    done = CliRunner().invoke(app, ["gate", str(result)])
    assert done.exit_code == 8 and "exit code 10" in done.output


@pytest.mark.parametrize("own", [{"eval_loss": "< 1"}, [{"name": "eval_loss"}], [{"name": "x", "condition": 1}], 3])
def test_damaged_gates_of_the_run_itself_are_a_storage_error(result: Path, own: Any) -> None:
    (result / "result.json").write_text(json.dumps(TRAINED | {"gates": own}))
    with pytest.raises(StorageError, match="no list of gates"):
        gate.run(str(result), [])


def test_what_follows_a_failed_gate_in_a_script_does_not_run(result: Path) -> None:
    """As GitHub and GitLab run the lines of a job: a shell that ends at the first failure."""
    for bound, code, out in (("1.9", 0, "deployed\n"), ("1", 8, "")):
        line = f"{sys.executable} -m tunekit gate {result} --gate 'eval_loss < {bound}' >/dev/null\necho deployed"
        done = subprocess.run(["sh", "-e", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, out)


def test_gates_of_the_run_itself_are_checked_again(result: Path) -> None:
    content = TRAINED | {"gates": [{"name": "eval_loss", "condition": "< 1"}]}
    (result / "result.json").write_text(json.dumps(content))
    assert CliRunner().invoke(app, ["gate", str(result)]).exit_code == 8


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_a_damaged_result_is_a_storage_error(result: Path, content: str) -> None:
    (result / "result.json").write_text(content)
    with pytest.raises(StorageError):
        gate.read_result(str(result))


def test_a_missing_result_is_a_storage_error(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["gate", str(tmp_path), "--gate", "a < 1"]).exit_code == 4


def test_junit_has_a_case_for_each_gate_and_its_figure(result: Path, tmp_path: Path) -> None:
    file = tmp_path / "gates.xml"
    words = [
        "gate",
        str(result),
        "--gate",
        "eval_loss < 1.9",
        "--gate",
        "blimp.accuracy >= before",
        "--junit",
        str(file),
    ]
    assert CliRunner().invoke(app, words).exit_code == 8
    (suite,) = ElementTree.parse(file).getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("run", "2", "1")
    first, second = suite
    assert first.get("name") == "eval_loss < 1.9" and first.find("failure") is None
    problem = second.find("failure")
    assert problem is not None and "0.45 [0.3, 0.6] is not >= 0.5" in str(problem.get("message"))


def test_junit_can_be_read_whatever_a_group_is_called() -> None:
    name = 'a.b.<&"\x1b\x00\udce9\ufffe'
    text = junit([Verdict(name, "> 1", False, f"{name} is not > 1")], name)
    (suite,) = ElementTree.fromstring(text.encode())
    assert suite.get("name") == 'a.b.<&"????' and suite[0].get("name") == 'a.b.<&"???? > 1'


def test_a_baseline_that_was_asked_otherwise_is_none() -> None:
    asked = {"sha256": "a", "limit": 200, "data": {"path": "here.jsonl"}}
    mine, theirs = (task(0.5) | {"configuration": asked | more} for more in ({}, {"limit": 20}))
    gates = [parse_line("blimp.accuracy >= baseline"), parse_line("eval_loss < baseline")]
    result = MEASURED | {"tasks": {"blimp": mine}, "after": {"eval_loss": 1}}
    verdicts = check(gates, result, {"tasks": {"blimp": theirs}, "after": {"eval_loss": 2}})
    assert not verdicts[0].passed and "the baseline was asked otherwise: limit" in verdicts[0].reason
    assert verdicts[1].passed, "what is no task's has no such settings"
    moved = task(0.5) | {"configuration": asked | {"data": {"path": "there.jsonl"}}}
    assert check(gates[:1], result, {"tasks": {"blimp": moved}})[0].passed, "the same items elsewhere"
