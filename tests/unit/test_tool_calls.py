"""Calls of tools are read in every form that models write, and match what the reference accepts and nothing else."""

import gzip
import json
from typing import Any

import pytest

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
    ],
)
def test_a_call_is_read_however_it_is_written(text: str) -> None:
    assert read_calls(text) == [CALL]


def test_several_calls_are_read_from_tags_lists_and_python() -> None:
    tags = f"<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}</tool_call>"
    assert read_calls(tags) == read_calls(f"[{JSON}, {JSON}]") == [CALL, CALL]
    assert read_calls("[f(a=1), g()]") == [("f", {"a": 1}), ("g", {})]


@pytest.mark.parametrize(
    "text", ["", "No call.", "{", '{"name": 3}', '{"name": "f", "arguments": "{"}', "f(1)", "f(a=__import__('os'))"]
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
        ("New York, NY", ["new york ny"], True),
        ("New York", ["York"], False),
        (True, [1], False),
        ("5", [5], False),
        ([1, 2], [[1, 2]], True),
        ([2, 1], [[1, 2]], False),
        ({"a": 1}, [{"a": [1, 2]}], True),
        ({"a": 3}, [{"a": [1, 2]}], False),
    ],
)
def test_values_are_compared_as_the_leaderboard_does(value: Any, accepted: list[Any], equal: bool) -> None:
    said = json.dumps({"name": "f", "arguments": {"x": value}})
    assert tool_call_match(Answered(said, (json.dumps({"f": {"x": accepted}}),))) == equal


def test_calls_in_parallel_may_come_in_any_order() -> None:
    wanted = json.dumps([{"f": {"x": [1]}}, {"f": {"x": [2]}}])
    assert tool_call_match(Answered("[f(x=2), f(x=1)]", (wanted,))) == 1
    assert tool_call_match(Answered("[f(x=2), f(x=2)]", (wanted,))) == 0


def test_a_plain_call_is_a_reference_too() -> None:
    for reference in ({"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": '{"x": 1}'}):
        assert tool_call_match(Answered("f(x=1)", (json.dumps(reference),))) == 1
        assert tool_call_match(Answered("f(x=1, y=2)", (json.dumps(reference),))) == 0
