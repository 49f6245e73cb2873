"""Pairs, labelled answers and prompts as token ids, against the renderings of the tokenizer's own template."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chats import (
    CHATML,
    LLAMA3,
    MISTRAL,
    THINKING,
    TOOLS,
    TOOLS_TEMPLATE,
    assistant,
    call,
    system,
    tokenizer,
    tool,
    trained,
    user,
)
from tunekit.data.notes import BEGINS_IN_SPACE
from tunekit.data.pairs import Labelled, Pair, render_pairs, render_prompts, render_unpaired
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Preference, Prompt, Rejected, Tokens, Unpaired
from tunekit.errors import DataError

ASKED = (user("hello"), assistant("one"), user("again"))


def preference(chosen: Any, rejected: Any, prompt: Any = ASKED, tools: str | None = None) -> Preference:
    return Preference(prompt, chosen, rejected, "a.jsonl:1", tools)


def pair(row: Preference, tok: Any, notes: Counter[str] | None = None, **options: Any) -> Pair:
    (rendered,) = render_pairs([row], tok, Rendering(**options), notes)
    assert isinstance(rendered, Pair), rendered
    return rendered


def rejection(row: Preference, tok: Any, **options: Any) -> Rejected:
    (rendered,) = render_pairs([row], tok, Rendering(**options))
    assert isinstance(rendered, Rejected), rendered
    assert rendered.source == "a.jsonl:1" and rendered.row["chosen"] == row.chosen
    return rendered


def asked(prompt: Any, tok: Any, **options: Any) -> Tokens:
    (rendered,) = render_prompts([prompt], tok, Rendering(**options))
    assert isinstance(rendered, Tokens), rendered
    assert not rendered.trained.any() and rendered.ids.dtype == np.int32
    return rendered


def test_only_the_answers_are_trained_and_the_prompt_is_the_one_asked() -> None:
    tok = tokenizer(CHATML)
    row = preference((assistant("an answer"),), (assistant("an error"),))
    both = pair(row, tok)
    assert trained(both.chosen, tok) == "an answer<|im_end|>" and trained(both.rejected, tok) == "an error<|im_end|>"
    prompt = tok.apply_chat_template(list(ASKED), add_generation_prompt=True, return_dict=False)
    assert both.chosen.ids[: both.prompt_length].tolist() == prompt
    assert both.rejected.ids[: both.prompt_length].tolist() == prompt
    whole = [*ASKED, assistant("an error")]
    assert both.rejected.ids.tolist() == tok.apply_chat_template(whole, return_dict=False)
    assert asked(Prompt(ASKED, "a.jsonl:1"), tok).ids.tolist() == prompt


@pytest.mark.parametrize("adds", ["", "<s>", "<s></s>"])
def test_strings_are_raw_text(adds: str) -> None:
    tok = tokenizer(None, adds=adds)
    both = pair(preference("two", "three", prompt="one "), tok)
    assert trained(both.chosen, tok) == "two</s>" and trained(both.rejected, tok) == "three</s>"
    bos = "<s>" if adds else ""
    assert tok.decode(both.chosen.ids[: both.prompt_length]) == f"{bos}one "
    # What is to be continued has no EOS, and one BOS.
    for text in ("one ", "<s>one ") if adds else ("one ",):
        assert tok.decode(asked(Prompt(text, "a.jsonl:1"), tok).ids) == f"{bos}one "


def test_a_token_over_the_border_belongs_to_the_answer_where_it_begins_in_white_space() -> None:
    tok = tokenizer(None)
    notes: Counter[str] = Counter()
    both = pair(preference("answer", "xyz", prompt="one "), tok, notes)
    assert tok.decode(both.chosen.ids[: both.prompt_length]) == "one"
    assert trained(both.chosen, tok) == " answer</s>" and trained(both.rejected, tok) == "xyz</s>"
    assert notes == {BEGINS_IN_SPACE: 1}
    (labelled,) = render_unpaired([Unpaired("one ", "answer", True, "a:1")], tok)
    assert isinstance(labelled, Labelled) and trained(labelled.tokens, tok) == " answer</s>"
    reason = rejection(preference("swer", "xyz", prompt="one an"), tok).reason
    assert reason.startswith("chosen: the completion: none of it can be trained")


def test_options_reach_the_prompt_and_the_answers() -> None:
    tok = tokenizer(THINKING)
    notes: Counter[str] = Counter()
    prompt = (system("Mine."), user("hello"), assistant("<think>x</think>one"), user("again"))
    row = preference((assistant("<think>y</think>two"),), (assistant("three"),), prompt)
    both = pair(row, tok, system="Be brief.", system_mode="replace", reasoning="drop", notes=notes)
    assert trained(both.chosen, tok) == "two<|im_end|>"
    begin = tok.decode(both.chosen.ids[: both.prompt_length])
    assert begin.startswith("<|im_start|>system\nBe brief.<|im_end|>") and "<think>" not in begin
    assert set(notes.values()) == {2, 3}
    options = {"system": "Be brief.", "system_mode": "replace", "reasoning": "drop"}
    ids = asked(Prompt(prompt, "a.jsonl:1"), tok, **options).ids
    assert ids.tolist() == both.chosen.ids[: both.prompt_length].tolist()


def test_tools_are_rendered_and_calls_are_answers() -> None:
    tok = tokenizer(TOOLS_TEMPLATE)
    calling = (assistant("", tool_calls=[call("weather", '{"city": "Rome"}')]),)
    both = pair(preference(calling, (assistant("no idea"),), (user("rain?"),), TOOLS), tok)
    assert trained(both.chosen, tok) == '<tool_call>weather{"city": "Rome"}</tool_call><|im_end|>'
    history = (user("rain?"), *calling, tool("dry"))
    ids = asked(Prompt(history, "a.jsonl:1", TOOLS), tok).ids
    parsed = [{**calling[0], "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]}]
    messages = [history[0], *parsed, history[2]]
    options = {"tools": json.loads(TOOLS), "add_generation_prompt": True, "return_dict": False}
    assert ids.tolist() == tok.apply_chat_template(messages, **options)
    (rejected,) = render_prompts([Prompt(history, "a.jsonl:1", TOOLS)], tokenizer(CHATML))
    assert isinstance(rejected, Rejected) and "does not render tools" in rejected.reason


def test_rows_that_are_no_pair_are_rejected_and_the_others_keep_their_places() -> None:
    tok = tokenizer(LLAMA3)
    same = preference((assistant("one"),), (assistant("one \n"),))
    assert "same tokens" in rejection(same, tok).reason
    forged = preference((assistant("one"),), (assistant("x<|eot_id|>"),))
    assert rejection(forged, tok).reason.startswith("rejected: message 3 (assistant)")
    silent = preference((assistant("one", train=False),), (assistant("two"),))
    refused = rejection(silent, tok)
    assert refused.reason.startswith("chosen: nothing of the answer can be trained")
    assert '"train": false' in refused.fix
    good = preference((assistant("one"),), (assistant("two"),))
    rendered = render_pairs([good, same, good, forged, good], tok)
    assert [isinstance(each, Pair) for each in rendered] == [True, False, True, False, True]


def test_an_answer_of_turns_that_the_template_tells_apart_is_rejected() -> None:
    tok = tokenizer(THINKING)
    long = (assistant("<think>x</think>one"), user("more"), assistant("two"))
    row = preference(long, (assistant("three"),))
    assert "several assistant turns" in rejection(row, tok).reason
    assert trained(pair(row, tok, reasoning="template").chosen, tok) == "one<|im_end|>two<|im_end|>"


def test_labelled_answers_keep_their_label() -> None:
    tok = tokenizer(CHATML)
    rows = [
        Unpaired(ASKED, (assistant("good"),), True, "a:1"),
        Unpaired("one ", "bad", False, "a:2"),
        Unpaired(ASKED, (assistant("x<|im_end|>"),), False, "a:3"),
    ]
    good, bad, forged = render_unpaired(rows, tok, Rendering(system="Be brief."))
    assert isinstance(good, Labelled) and good.label and trained(good.tokens, tok) == "good<|im_end|>"
    assert "Be brief." in tok.decode(good.tokens.ids)
    assert isinstance(bad, Labelled) and not bad.label and trained(bad.tokens, tok) == "bad</s>"
    assert isinstance(forged, Rejected) and forged.source == "a:3" and forged.row["label"] is False


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ((), "no messages"),
        ((user("q"), assistant("a")), "ends with an assistant message"),
        ((user("q<|im_end|>"),), "special token"),
        ("\ud800", "surrogate"),
    ],
)
def test_prompts_that_cannot_be_asked_are_rejected(prompt: Any, words: str) -> None:
    good = Prompt(ASKED, "a:1")
    before, bad, after = render_prompts([good, Prompt(prompt, "a:2"), good], tokenizer(CHATML))
    assert isinstance(before, Tokens) and isinstance(after, Tokens)
    assert isinstance(bad, Rejected) and words in bad.reason and bad.source == "a:2"


def test_a_prompt_that_the_template_leaves_out_in_part_is_rejected() -> None:
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    for asked_of in ("hello", "Mine."):
        (rejected,) = render_prompts([Prompt((system("Mine."), user(asked_of)), "a:1")], tokenizer(silent))
        assert isinstance(rejected, Rejected) and "message 0 (system)" in rejected.reason


def test_prompts_of_both_kinds_come_out_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.data.encode.BATCH", 3)
    tok = tokenizer(CHATML)
    rows = [Prompt(f"t{i}" if i % 3 else (user(f"c{i}"),), f"a:{i}") for i in range(8)]
    rendered = [each for each in render_prompts(rows, tok) if isinstance(each, Tokens)]
    assert [tokens.source for tokens in rendered] == [f"a:{i}" for i in range(8)]
    assert all((f"t{i}" if i % 3 else f"c{i}") in tok.decode(tokens.ids) for i, tokens in enumerate(rendered))


def test_what_concerns_every_row_raises() -> None:
    row = preference((assistant("one"),), (assistant("two"),))
    with pytest.raises(DataError, match="chat template"):
        render_pairs([row], tokenizer(None))
    with pytest.raises(DataError, match="chat template"):
        render_prompts([Prompt(ASKED, "a:1")], tokenizer(None))


TOKENIZERS = [
    tokenizer(template, trim_offsets=trim) for template in (CHATML, LLAMA3, MISTRAL) for trim in (False, True)
]
TEXT = st.text(alphabet=st.sampled_from("answer \n:é😀"), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(prompt=TEXT, chosen=TEXT, rejected=TEXT, tok=st.sampled_from(TOKENIZERS), raw=st.booleans())
def test_the_prompt_is_shared_and_never_trained(prompt: str, chosen: str, rejected: str, tok: Any, raw: bool) -> None:
    row = preference(chosen, rejected, prompt)
    if not raw:
        row = preference((assistant(chosen),), (assistant(rejected),), (user(prompt),))
    (rendered,) = render_pairs([row], tok)
    if isinstance(rendered, Rejected):
        inside = raw and prompt[-1:].strip() and "none of it can be trained" in rendered.reason
        assert inside or chosen.strip() == rejected.strip()
        return
    n = rendered.prompt_length
    assert n > 0 or raw
    assert rendered.chosen.ids[:n].tolist() == rendered.rejected.ids[:n].tolist()
    for tokens, answer in ((rendered.chosen, chosen), (rendered.rejected, rejected)):
        assert not tokens.trained[:n].any() and tokens.trained.any()
        said = trained(tokens, tok).removesuffix(tok.decode(tokens.ids[tokens.trained][-1:])).strip()
        # A token of a word of the prompt (of " answer"), or in a chat of two line breaks, is not trained.
        inside = len("answer") if raw and prompt[-1:].strip() else 0
        assert answer.strip().endswith(said) and len(answer.strip()) - len(said) <= inside
