"""Calls of tools are read in every form that models write, and match what the reference accepts and nothing else."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.evals.metrics.metric import Answered
from tunekit.evals.metrics.tool_calls import read_calls, tool_call_match
from tunekit.evals.task import SHIPPED

CALL = ("get_weather", {"city": "Oslo", "days": 3, "units": ["C", "F"], "hourly": True})
JSON = json.dumps({"name": CALL[0], "arguments": CALL[1]})


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        f"Sure!\n{JSON}\nThat is all.",
        f"[{JSON}]",
        f"```json\n{JSON}\n```",
        f"<tool_call>\n{JSON}\n</tool_call>",
        f"I will look.\n<tool_call>{JSON}",
        json.dumps({"type": "function", "function": {"name": CALL[0], "arguments": json.dumps(CALL[1])}}),
        json.dumps({"name": CALL[0], "parameters": CALL[1]}),
        '[get_weather(city="Oslo", days=3, units=["C", "F"], hourly=True)]',
        "get_weather(city='Oslo', days=3, units=['C', 'F'], hourly=True)",
        f"<functioncall> {JSON} <|endoftext|>",
        f"<functioncall> {json.dumps({'name': CALL[0]})[:-1]}, \"arguments\": '{json.dumps(CALL[1])}'}} <|endoftext|>",
        f"Of {{these}} and [1, 2] the first:\n{JSON}",
        f"As in\n```json\n[1]\n```\n{JSON}",
    ],
)
def test_a_call_is_read_however_it_is_written(text: str) -> None:
    assert read_calls(text) == [CALL]


def test_several_calls_are_read_from_tags_lists_and_python() -> None:
    tags = f"<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}</tool_call>"
    assert read_calls(tags) == read_calls(f"[{JSON}, {JSON}]") == [CALL, CALL]
    assert read_calls(f"{JSON}\n{JSON}") == read_calls(f"```json\n{JSON}\n```\nand\n```\n{JSON}\n```") == [CALL, CALL]
    assert read_calls("[f(a=1), g()]") == [("f", {"a": 1}), ("g", {})]
    assert read_calls('[f(a={"name": "x"})]') == [("f", {"a": {"name": "x"}})]


def test_a_tag_without_a_call_adds_none() -> None:
    assert read_calls(f"<tool_call>oops</tool_call><tool_call>{JSON}</tool_call>") == [CALL]


def test_an_apostrophe_in_the_quoted_arguments_of_glaive_is_read() -> None:
    text = """<functioncall> {"name": "f", "arguments": '{"city": "L'Aquila"}'} <|endoftext|>"""
    assert read_calls(text) == [("f", {"city": "L'Aquila"})]


@pytest.mark.parametrize(
    "text",
    [
        *("", "No call.", "{", '{"name": 3}', '{"name": "f", "arguments": "{"}', "f(1)", "f(a=__import__('os'))"),
        *("[f(a=1), f(1)]", 'f(**{"a": 1})', "f(*[1])", "f(a=1)\ng(b=2)", "[" * 5000),
    ],
)
def test_what_is_no_call_is_none_and_never_run(text: str) -> None:
    assert read_calls(text) == []


def possible_answers() -> list[Any]:
    with gzip.open(SHIPPED.parent / "samples" / "bfcl_simple.jsonl.gz", "rt") as file:
        return [json.loads(json.loads(line)["answer"]) for line in file]


def first_accepted(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return {key: plain(inner[0]) for key, inner in value.items()} if isinstance(value, dict) else value

    calls = []
    for each in answer:
        ((name, arguments),) = each.items()
        given = {key: plain(values[0]) for key, values in arguments.items() if values[0] != ""}
        calls.append({"name": name, "arguments": given})
    return calls


@pytest.mark.parametrize("answer", possible_answers(), ids=lambda answer: next(iter(answer[0])))
def test_the_possible_answers_of_the_leaderboard(answer: list[dict[str, Any]]) -> None:
    calls = first_accepted(answer)

    def match(said: Any) -> float:
        return tool_call_match(Answered("", (json.dumps(answer),), completion=json.dumps(said)))

    assert match(calls) == 1
    assert match([*calls, *calls]) == 0 and match([]) == 0
    other = json.loads(json.dumps(calls))
    other[0]["name"] += "x"
    assert match(other) == 0
    unknown = json.loads(json.dumps(calls))
    unknown[0]["arguments"]["made_up"] = 1
    assert match(unknown) == 0
    needed = [key for key, values in next(iter(answer[0].values())).items() if "" not in values]
    for key in needed:
        less = json.loads(json.dumps(calls))
        del less[0]["arguments"][key]
        assert match(less) == 0, key


@pytest.mark.parametrize(
    ("value", "accepted", "equal"),
    [
        (5, [5.0], True),
        (5.0, [5], True),
        ("x^2 * y", ["X2y"], True),
        ("New York, NY", ["new york ny"], True),
        ("New York", ["York"], False),
        (True, [1], False),
        ("5", [5], False),
        ([1, 2], [[1, 2]], True),
        ([2, 1], [[1, 2]], False),
        ({"a": 1}, [{"a": [1, 2]}], True),
        ({"a": 3}, [{"a": [1, 2]}], False),
        ({"a": 1}, [{"a": [1], "b": ["", 2]}], True),
        ({"a": 1}, [{"a": [1], "b": [2]}], False),
        ({"a": 1, "b": 3}, [{"a": [1], "b": ["", 2]}], False),
        ("", [5, ""], False),
        (None, ["", None], True),
    ],
)
def test_values_are_compared_as_the_leaderboard_does(value: Any, accepted: list[Any], equal: bool) -> None:
    said = json.dumps({"name": "f", "arguments": {"x": value}})
    assert tool_call_match(Answered(said, (json.dumps({"f": {"x": accepted}}),))) == equal


def published() -> list[dict[str, Any]]:
    with gzip.open(Path(__file__).with_name("bfcl_verdicts.jsonl.gz"), "rt") as file:
        return [json.loads(line) for line in file][1:]  # the first line says where they come from


def test_verdicts_are_those_of_the_published_checker() -> None:
    cases = published()
    assert len(cases) > 400 and 0.3 < sum(case["valid"] for case in cases) / len(cases) < 0.7
    for case in cases:
        answered = Answered(
            "", (json.dumps(case["answer"]),), json.dumps(case["calls"]), {"function": json.dumps(case["function"])}
        )
        assert tool_call_match(answered) == case["valid"], case


def test_types_are_those_that_the_row_describes() -> None:
    def match(said: str, kind: str, accepted: list[Any]) -> float:
        parameters = {"properties": {"x": {"type": kind}}, "required": ["x"]}
        functions = [{"name": "g"}, {"name": "f", "parameters": parameters}]
        return tool_call_match(Answered(said, (json.dumps({"f": {"x": accepted}}),), row={"function": functions}))

    assert match("f(x=5)", "float", [5.0]) == match("f(x=5.0)", "float", [5]) == match("f(x=5)", "integer", [5]) == 1
    assert match('f(x=("A", 2))', "tuple", [["a", 2]]) == match('f(x=["A", 2])', "tuple", [["a", 2]]) == 1
    assert match('f(x=("A", 2))', "array", [["a", 2]]) == 0
    assert match("f(x=5.0)", "integer", [5]) == match("f(x='5')", "integer", [5]) == match("f()", "integer", [""]) == 0


def test_a_dot_in_a_name_may_be_an_underscore_but_not_the_other_way() -> None:
    assert tool_call_match(Answered("a_b(x=1)", (json.dumps({"a.b": {"x": [1]}}),))) == 1
    assert tool_call_match(Answered("a.b(x=1)", (json.dumps({"a_b": {"x": [1]}}),))) == 0


@pytest.mark.parametrize("reference", ["{", "3", '{"f": 1, "g": 2}', '{"f": {"x": 1}}', "[[]]", '{"f": [1]}'])
def test_a_reference_that_is_no_call_is_said(reference: str) -> None:
    with pytest.raises(DataError, match="tool_call_match: the reference"):
        tool_call_match(Answered("f(x=1)", (reference,)))


def test_calls_in_parallel_may_come_in_any_order() -> None:
    wanted = json.dumps([{"f": {"x": [1]}}, {"f": {"x": [2]}}])
    assert tool_call_match(Answered("[f(x=2), f(x=1)]", (wanted,))) == 1
    assert tool_call_match(Answered("[f(x=2), f(x=2)]", (wanted,))) == 0


def test_a_plain_call_is_a_reference_too() -> None:
    for reference in ({"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": '{"x": 1}'}):
        assert tool_call_match(Answered("f(x=1)", (json.dumps(reference),))) == 1
        assert tool_call_match(Answered("f(x=1, y=2)", (json.dumps(reference),))) == 0
    nested = json.dumps([{"name": "f", "arguments": {"x": "", "y": {"a": 1, "b": [{"c": "D"}]}}}])
    assert tool_call_match(Answered('f(x="", y={"a": 1, "b": [{"c": "D"}]})', (nested,))) == 1
    assert tool_call_match(Answered('f(y={"a": 1, "b": [{"c": "D"}]})', (nested,))) == 0
    assert tool_call_match(Answered('f(x="", y={"a": 2, "b": [{"c": "D"}]})', (nested,))) == 0
