"""Rewards of single answers, of models, and of the user's own functions; what happens where they fail."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trl.rewards import accuracy_reward, think_format_reward

from tunekit.data.rows import Prompt
from tunekit.errors import DataError, RecipeError
from tunekit.recipe.load import load, load_text
from tunekit.rollout.rewards import check_prompts, functions, make_rewards, score
from tunekit.rollout.samples import Response

KEYS = ("model", "label", "extract", "pattern", "target", "schema_path")


def setting(function: str | None = None, **keys: Any) -> dict[str, Any]:
    return {"function": function, "weight": 1.0, **dict.fromkeys(KEYS), **keys}


def answer(text: str, gold: str | None = None, *, tokens: int = 5, tools: str | None = None, row: int = 1) -> Response:
    prompt = Prompt(({"role": "user", "content": "?"},), f"rows.jsonl:{row}", tools, gold)
    return Response(prompt, text, tokens, True, f"<user>?<assistant>{text}")


def value(function: str, response: Response, **keys: Any) -> float:
    rewards = make_rewards([setting(function, **keys)], allow_code=False)
    return float(score(rewards, [response]).total[0])


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("She has 5 + 3 = 8 apples.", "8", 1),
        ("She has 5 + 3 = 8 apples.", "So 5 + 3 = <<5+3=8>>8.\n#### 8", 1),
        ("The total is $1,234.00.", "1234", 1),
        ("It is 1,234", "1234.5", 0),
        ("-3", "3", 0),
        ("#### 7 apples, not 9", "7", 1),
        ("a third of 9 is 3.0", "3", 1),
        ("no number at all", "3", 0),
        ("8 apples... or 9?", "8", 0),
        ("0.1", "0.10000000001", 1),
        ("the answer is 3/4 of 8", "8", 1),
        ("The answer is 3/4.", "0.75", 1),
        ("The answer is 1/4.", "3/4", 0),
        ("1234567", "1234568", 0),
        ("42", "42.0", 1),
        ("3", "$3", 1),
        ("#### $1,234.50\nIs that right? 7", "1,234.5", 1),
        ("5/0", "5", 0),
    ],
)
def test_numbers_are_compared_as_numbers(text: str, gold: str, expected: float) -> None:
    assert value("number_match", answer(text, gold)) == expected


@pytest.mark.parametrize(
    ("function", "text", "gold", "keys", "expected"),
    [
        ("exact_match", " Paris\n", "Paris", {}, 1),
        ("exact_match", "paris", "Paris", {}, 0),
        ("exact_match", "The answer is (B).", "B", {"extract": "letter"}, 1),
        ("exact_match", "x=1; Answer: 12", "12", {"extract": "Answer: (.*)"}, 1),
        ("regex", "first\nsecond", None, {"pattern": "first.second"}, 1),
        ("regex", "first", None, {"pattern": "^second"}, 0),
        ("length", "", None, {"target": 5}, 1),
        ("length", "", None, {"target": 10}, 0.5),
        ("length", "", None, {"target": 2}, -0.5),
        ("length", "", None, {"target": 1}, -1),
    ],
)
def test_a_reward_of_one_answer(function: str, text: str, gold: str, keys: dict[str, Any], expected: float) -> None:
    assert value(function, answer(text, gold), **keys) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"age": 3}', 1),
        ('Here it is:\n```json\n{"age": 3}\n```', 1),
        ('{"age": "3"}', 0),
        ('{"age": 3', 0),
        ("three", 0),
        ("[" * 20000, 0),
        ('{"age": 3, "weight": NaN}', 0),
        ('```\n{"age": 3}\n```\nor\n```\nno\n```', 1),
    ],
)
def test_json_is_held_to_its_schema(tmp_path: Path, text: str, expected: float) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}))
    assert value("json_schema", answer(text), schema_path=str(schema)) == expected


@pytest.mark.parametrize("content", [None, "{", '{"type": "no type"}'])
def test_a_broken_schema_is_named_before_anything_is_judged(tmp_path: Path, content: str | None) -> None:
    schema = tmp_path / "schema.json"
    if content is not None:
        schema.write_text(content)
    with pytest.raises(RecipeError, match="no JSON schema"):
        make_rewards([setting("json_schema", schema_path=str(schema))], allow_code=False)


def test_tool_calls_are_compared_by_name_and_arguments() -> None:
    gold = json.dumps([{"name": "add", "arguments": {"a": 1, "b": 2}}])
    right = '<tool_call>{"name": "add", "arguments": {"b": 2, "a": 1}}</tool_call>'
    assert value("tool_call_match", answer(right, gold)) == 1
    assert value("tool_call_match", answer(right.replace("2", "3"), gold)) == 0
    assert value("tool_call_match", answer("3", gold)) == 0
    with pytest.raises(DataError, match=r"rows\.jsonl:1: ValueError: tool_call_match: the reference 'none' is no call"):
        value("tool_call_match", answer(right, "none"))


def test_code_runs_apart_and_within_limits() -> None:
    tests = "assert double(2) == 4"
    good = "Sure:\n```python\ndef double(x):\n    return 2 * x\n```"
    assert value("code", answer(good, tests)) == 1
    assert value("code", answer(good.replace("2 *", "3 *"), tests)) == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        call = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        socket.create_connection(("127.0.0.1", port)).close()  # which works where nothing keeps it from working
        assert value("code", answer(f"```python\n{call}\ndef double(x): return 2 * x\n```", tests)) == 0
    assert value("code", answer("```python\nimport sys; sys.exit(0)\n```", tests)) == 0


def test_code_without_end_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "run_code", partial(functions.run_code, seconds=1.0))
    started = time.monotonic()
    assert value("code", answer("```python\nwhile True: pass\n```", "assert True")) == 0
    assert 0.9 < time.monotonic() - started < 8


def test_numbers_are_found_however_they_are_written() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        number = Decimal(int(random.integers(-(10**7), 10**7))).scaleb(-int(random.integers(0, 4)))
        forms = [
            f"{number}",
            f"{number:,}",
            f"So it is {number}.",
            f"1 and 2, hence #### {number:,}\n9",
            f"= {number} km",
        ]
        for form in forms:
            assert value("number_match", answer(form, f"{number}")) == 1, form
            assert value("number_match", answer(form, f"7 - 1 = 6\n#### {number + 1}")) == 0, form


def test_numbers_agree_with_those_of_trl() -> None:
    pytest.importorskip("math_verify")
    pairs = [("42", "42"), ("1234", "1,234"), ("5", "6"), ("-3", "3"), ("0.75", "0.75"), ("3/4", "0.75")]
    said = [[{"role": "assistant", "content": f"The answer is $\\boxed{{{text}}}$"}] for text, _ in pairs]
    theirs = accuracy_reward(said, [f"${gold}$" for _, gold in pairs])
    assert [value("number_match", answer(f"The answer is {text}", gold)) for text, gold in pairs] == theirs


def test_a_format_agrees_with_that_of_trl() -> None:
    texts = [
        "<think>\na\nb\n</think>\nc", "<think>a", "a</think>", "<think>a<think>b</think>c", "", "<think></think>",
        "so <think>a</think>", "\n<think>a</think>",
    ]  # fmt: skip
    theirs = think_format_reward([[{"content": text}] for text in texts])
    pattern = r"\A<think>(?!.*<think>).*?</think>"
    assert [value("regex", answer(text), pattern=pattern) for text in texts] == theirs
    assert set(theirs) == {0.0, 1.0}


@pytest.fixture
def impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.5)
    yield
    socket.setdefaulttimeout(before)


@pytest.mark.usefixtures("impatient")
def test_a_schema_of_others_is_not_fetched(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        (tmp_path / "s.json").write_text(json.dumps({"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/s.json"}))
        with pytest.raises(DataError, match="json_schema failed on 1 of 1 answers"):
            value("json_schema", answer("3"), schema_path=str(tmp_path / "s.json"))
        with pytest.raises(TimeoutError):
            server.accept()


OWN = """
import os

def good(text, *, answer, num_tokens):
    return answer in text and num_tokens > 1

def anything(text, **facts):
    return len(facts)

def broken(text):
    if "bad" in text:
        raise KeyError("bad")
    if text == "exit":
        raise SystemExit
    if text == "ctrl-c":
        raise KeyboardInterrupt
    odd = {"none": None, "nan": float("nan"), "inf": float("inf"), "word": "1", "huge": 10**400, "flag": True}
    return odd.get(text, 1)

def named(answer, prompt, **facts):
    prompt[0]["content"] = "changed"
    return len(answer) + 10 * len(facts)

def odd(text, *, temperature):
    return 0
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(OWN)
    return str(tmp_path / "mine.py")


def test_a_function_of_the_user_runs_where_it_may(own: str) -> None:
    with pytest.raises(RecipeError, match="--allow-code"):
        make_rewards([setting(f"{own}:good")], allow_code=False)
    rewards = make_rewards([setting(f"{own}:good"), setting(f"{own}:anything", weight=0.5)], allow_code=True)
    scores = score(rewards, [answer("it is 4", "4"), answer("it is 5", "4")])
    assert scores.values["good"].tolist() == [1, 0]
    assert scores.total.tolist() == [1 + 0.5 * 5, 0.5 * 5]


def test_a_function_that_wants_what_no_answer_has_is_refused(own: str) -> None:
    with pytest.raises(RecipeError, match="takes temperature"):
        make_rewards([setting(f"{own}:odd")], allow_code=True)


def test_the_text_may_have_any_name_and_the_prompt_is_a_copy(own: str) -> None:
    response = answer("four", "4")
    assert score(make_rewards([setting(f"{own}:named")], allow_code=True), [response]).total.tolist() == [4 + 30]
    assert response.prompt.prompt[0]["content"] == "?"  # type: ignore[index]


@pytest.mark.parametrize("text", ["bad", "none", "nan", "inf", "word", "huge", "exit"])
def test_a_reward_that_fails_is_counted_and_its_answer_left_out(
    own: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = make_rewards([setting(f"{own}:broken"), setting("length", target=5)], allow_code=True)
    responses = [answer("fine", row=i) for i in range(30)]
    responses[7] = answer(text, row=7)
    with caplog.at_level(logging.WARNING):
        scores = score(rewards, responses, limit=0.05)
    assert np.flatnonzero(~scores.valid).tolist() == [7] and np.isnan(scores.total[7])
    assert scores.values["length"][7] == 1
    assert "broken failed on 1 of 30 answers; the first is to rows.jsonl:7" in caplog.text
    with pytest.raises(DataError, match=r"broken failed on 2 of 60 answers; the first is to rows\.jsonl:7"):
        score(rewards, responses, limit=0)


def test_ctrl_c_in_a_reward_ends_the_run(own: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(make_rewards([setting(f"{own}:broken")], allow_code=True), [answer("ctrl-c")])


def test_failures_end_the_run_by_their_share_of_the_last_rollouts_once_they_are_more_than_a_few(own: str) -> None:
    (rewards, good) = (make_rewards([setting(f"{own}:broken")], allow_code=True), [answer("fine") for _ in range(8)])
    one_of_eight = [*good[:7], answer("bad", row=9)]
    for _ in range(2):
        score(rewards, one_of_eight)
    with pytest.raises(DataError, match=r"failed on 3 of 24 answers; the first is to rows\.jsonl:9: KeyError: 'bad'"):
        score(rewards, one_of_eight)
    for _ in range(20):  # forgets what was before
        score(rewards, good)
    score(rewards, one_of_eight, limit=0.015)  # 1 of 160, and 4 of 192 with those before
    with pytest.raises(DataError, match="failed on 8 of 8 answers"):
        score(rewards, [answer("bad")] * 8)


def test_a_kind_of_failure_is_said_once(own: str, caplog: pytest.LogCaptureFixture) -> None:
    rewards = make_rewards([setting(f"{own}:broken")], allow_code=True)
    responses = [*(answer("fine") for _ in range(98)), answer("bad", row=3), answer("bad", row=4)]
    for each in (responses, responses, [*responses[:-2], answer("nan", row=5), answer("inf", row=6)]):
        score(rewards, each)
    first, second = (each.getMessage() for each in caplog.records if "failed on" in each.getMessage())
    assert "failed on 2 of 100 answers; the first is to rows.jsonl:3: KeyError: 'bad'; rows.jsonl:4" in first
    assert "rows.jsonl:5: it gives nan, and no finite number; rows.jsonl:6" in second


def test_a_flag_is_a_number(own: str) -> None:
    scores = score(make_rewards([setting(f"{own}:broken")], allow_code=True), [answer("flag")])
    assert scores.total.tolist() == [1.0]


def test_rewards_that_compare_need_the_answers_of_the_rows() -> None:
    rewards = make_rewards([setting("length", target=3), setting("number_match")], allow_code=False)
    with pytest.raises(DataError, match=r"number_match compares .* rows\.jsonl:2 has none"):
        check_prompts(rewards, [answer("", "1").prompt, answer("", None, row=2).prompt])
    check_prompts(rewards[:1], [answer("", None).prompt])
    with pytest.raises(DataError, match="has no number"):
        score(rewards, [answer("3", "none")])


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("{weight: 2}", "names neither of model and function"),
        ("number_mach", "rewards.0.model: names a model; did you mean the function number_match?"),
        ("{model: m, function: length, target: 3}", "names both of model and function"),
        ("length", "length needs target"),
        ("{function: length, target: 3, pattern: x}", "rewards.0.pattern: has no effect with length; it is for regex"),
        ("{function: number_match, label: x}", "rewards.0.label: has no effect with number_match; it is for model"),
        ("{function: regex, pattern: '('}", "no regular expression"),
        ("{function: lenght, target: 3}", "did you mean length?"),
        ("{function: length, target: 3, weight: 0}", "must not be 0"),
    ],
)
def test_a_reward_that_does_not_hold_together_is_named(rewards: str, said: str) -> None:
    text = f"stage: grpo\nmodel: m\ndata: d\noutput_dir: o\nrewards: {rewards}\n"
    with pytest.raises(RecipeError) as caught:
        load_text(text, "r.yaml")
    assert "r.yaml:5" in str(caught.value) and said in str(caught.value)


def test_the_other_name_of_rewards_is_said_where_it_stands() -> None:
    text = "stage: grpo\nmodel: m\ndata: d\noutput_dir: o\nreward_model: out/reward\n"
    resolved = load_text(text, "r.yaml")
    assert resolved.recipe.rewards is not None and resolved.recipe.rewards[0].model == "out/reward"
    assert resolved.origins["rewards.0.model"] == "r.yaml:5" or resolved.origins["rewards"] == "r.yaml:5"
    with pytest.raises(RecipeError, match=r"r\.yaml:5:\d+.*\n.*reward_model: 5"):
        load_text(text.replace("out/reward", "5"), "r.yaml")


def test_the_other_name_of_rewards_is_one_on_the_command_line_too(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stage: ppo\nmodel: m\ndata: d\noutput_dir: o\nreward_model: out/reward\n")
    rewards = load(path, ("reward_model=out/other",)).recipe.rewards
    assert rewards is not None and [each.model for each in rewards] == ["out/other"]
    with pytest.raises(RecipeError, match="rewards: is missing"):
        load(path, ("~reward_model",))
