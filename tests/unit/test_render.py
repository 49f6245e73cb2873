"""Ids and masks against several families of chat templates, on byte-level tokenizers built here."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tunekit.data.render import render, render_all
from tunekit.data.rows import Conversation, Text, Tokens
from tunekit.errors import DataError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# SmolLM2: a default system message where the conversation has none.
SMOLLM = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}" + CHATML
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n'"
    " + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen3: the reasoning of all turns but the last is stripped.
THINKING = (
    "{% for m in messages %}{% set c = m.content if loop.last else m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>"]
# " answer" is one token and so are two line breaks; everything else is one token a byte.
MERGES = [("Ġ", "a"), ("Ġa", "n"), ("Ġan", "s"), ("Ġans", "w"), ("Ġansw", "e"), ("Ġanswe", "r"), ("Ċ", "Ċ")]


def tokenizer(template: str | None, *, trim_offsets: bool = False, adds: str = "", **tokens: str) -> Any:
    """A byte-level BPE with `MERGES`; `adds` names what it puts around raw text ("<s>", "<s></s>")."""
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    bpe = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=MERGES))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "</s>"])
    bpe.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if adds:
        ids = [(token, bpe.token_to_id(token)) for token in ("<s>", "</s>")]
        single = "<s> $A </s>" if "</s>" in adds else "<s> $A"
        bpe.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    names = {"bos_token": "<s>", "eos_token": "</s>", **tokens}
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, extra_special_tokens=SPECIAL, **names)
    fast.chat_template = template
    return fast


def chat(*contents: str, **marks: bool) -> Conversation:
    """User and assistant in turn; `m1=False` marks message 1 as not to be trained."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    for key, train in marks.items():
        messages[int(key[1:])]["train"] = train  # type: ignore[assignment]
    return Conversation(tuple(messages), "a.jsonl:1")


def trained(tokens: Tokens, tok: Any) -> str:
    return str(tok.decode(tokens.ids[tokens.trained]))


def error_of(row: Conversation | Text, tok: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        render(row, tok, **options)
    assert "a.jsonl:1" in caught.value.message
    return str(caught.value)


TALK = chat("hello", "an answer", "one", "two three")
FAMILIES = {
    "chatml": (CHATML, "<|im_end|>", ""),
    "smollm": (SMOLLM, "<|im_end|>", ""),
    "llama3": (LLAMA3, "<|eot_id|>", ""),
    "mistral": (MISTRAL, "</s>", " "),
    "gemma": (GEMMA, "<end_of_turn>", ""),
    "marked": (MARKED, "<|im_end|>", ""),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_and_its_terminator_is_trained_and_nothing_else(family: str) -> None:
    template, end, space = FAMILIES[family]
    tok = tokenizer(template)
    tokens = render(TALK, tok)
    assert trained(tokens, tok) == f"{space}an answer{end}{space}two three{end}"
    whole = tok.apply_chat_template(list(TALK.messages), tokenize=True, return_dict=True)
    assert tokens.ids.tolist() == whole["input_ids"]
    assert tokens.ids.dtype == np.int32 and tokens.trained.dtype == np.bool_


def test_the_mask_is_the_one_that_generation_markers_give() -> None:
    tok = tokenizer(MARKED)
    marked = tok.apply_chat_template(list(TALK.messages), return_dict=True, return_assistant_tokens_mask=True)
    assert render(TALK, tok).trained.tolist() == [bool(x) for x in marked["assistant_masks"]]


def test_the_line_break_after_the_terminator_is_not_trained() -> None:
    tok = tokenizer(CHATML)
    tokens = render(TALK, tok)
    assert tok.decode(tokens.ids[-2:]) == "<|im_end|>\n" and tokens.trained[-2:].tolist() == [True, False]


@pytest.mark.parametrize(
    ("loss_on", "row", "expected"),
    [
        ("assistant", TALK, "an answer<|im_end|>two three<|im_end|>"),
        ("last", TALK, "two three<|im_end|>"),
        ("completion", TALK, "two three<|im_end|>"),
        ("assistant", chat("hello", "an answer", "one", "two three", m1=False), "two three<|im_end|>"),
        ("last", chat("hello", "an answer", "one", "two three", m3=False), ""),
        ("completion", chat("hello", "an answer", "one", "two three", m3=False), "an answer<|im_end|>"),
        (
            "completion",
            chat("hello", "one", "two", "three", "hello", "answer", m0=False),
            "one<|im_end|>three<|im_end|>answer<|im_end|>",
        ),
    ],
)
def test_loss_on_and_train_false_choose_the_turns(loss_on: str, row: Conversation, expected: str) -> None:
    for template in (CHATML, MARKED):
        tok = tokenizer(template)
        assert trained(render(row, tok, loss_on=loss_on), tok) == expected


def test_all_trains_every_token_but_the_first_and_turns_marked_false() -> None:
    tok = tokenizer(CHATML)
    assert render(TALK, tok, loss_on="all").trained.tolist() == [False] + [True] * (len(render(TALK, tok).ids) - 1)
    tokens = render(chat("hello", "an answer", "one", "two three", m1=False), tok, loss_on="all")
    assert "an answer" not in trained(tokens, tok) and "two three" in trained(tokens, tok)


def test_pad_equal_to_eos_changes_nothing() -> None:
    plain, padded = (
        tokenizer(CHATML, eos_token="<|im_end|>"),
        tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>"),
    )
    assert render(TALK, plain).trained.tolist() == render(TALK, padded).trained.tolist()


def test_a_template_that_writes_bos_gets_no_second_one() -> None:
    tok = tokenizer(LLAMA3, adds="<s>")
    tokens = render(TALK, tok)
    assert tokens.ids.tolist().count(tok.bos_token_id) == 1 and tokens.ids[0] == tok.bos_token_id


def test_the_system_message_is_put_before_rows_that_have_none() -> None:
    tok = tokenizer(CHATML)
    assert tok.decode(render(TALK, tok, system="Be brief.").ids).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    own = Conversation(({"role": "system", "content": "Mine."}, *TALK.messages), "a.jsonl:1")
    assert "Be brief." not in tok.decode(render(own, tok, system="Be brief.").ids)


def test_a_template_that_refuses_the_messages_is_named_with_the_row() -> None:
    message = error_of(TALK, tokenizer(GEMMA), system="Be brief.")
    assert "System role not supported" in message and "data.system" in message
    rows = [chat("hello", "one"), Conversation(({"role": "user"}, {"role": "assistant", "content": "x"}), "a.jsonl:2")]
    with pytest.raises(DataError, match="jsonl:2"):
        render_all(rows, tokenizer(CHATML))


def test_a_template_that_strips_reasoning_from_history_is_refused_but_for_the_last_turn() -> None:
    tok = tokenizer(THINKING)
    row = chat("hello", "<think>one</think>two", "hello", "<think>one</think>three")
    message = error_of(row, tok)
    assert "message 1 (assistant)" in message and "loss_on: last" in message
    assert "alone: " in message and "<think>one" in message
    assert trained(render(row, tok, loss_on="last"), tok) == "<think>one</think>three<|im_end|>"


def test_a_template_that_drops_part_of_an_answer_is_refused() -> None:
    dropping = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    assert "does not render its content" in error_of(chat("hello", "<think>one</think>two"), tokenizer(dropping))
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    row = Conversation(({"role": "user", "content": "rain?"}, call), "a.jsonl:1")
    assert "tool_calls" in error_of(row, tokenizer(CHATML))
    reasoned = {"role": "assistant", "content": "no", "reasoning_content": "clear sky"}
    row = Conversation(({"role": "user", "content": "rain?"}, reasoned), "a.jsonl:1")
    assert "reasoning_content" in error_of(row, tokenizer(CHATML))


def test_a_template_without_a_terminator_is_refused() -> None:
    message = error_of(TALK, tokenizer(ENDLESS))
    assert "message 1 (assistant)" in message and "terminator" in message and "data.chat_template" in message


def test_a_tokenizer_without_a_template_is_refused_for_conversations_only() -> None:
    tok = tokenizer(None)
    assert "data.chat_template: path.jinja" in error_of(TALK, tok)
    assert trained(render(Text("one ", "two", "a.jsonl:1"), tok), tok) == "two</s>"


def test_markers_that_disagree_are_refused() -> None:
    beside = MARKED.replace("{% generation %}{{ m.content", "{{ m.content }}{% generation %}{{ ''")
    assert "disagree" in error_of(TALK, tokenizer(beside))
    questions = MARKED.replace("m.role == 'assistant'", "true")
    assert "on the token 'h'" in error_of(chat("hello", "one"), tokenizer(questions))


def test_markers_may_leave_out_the_terminator() -> None:
    tok = tokenizer(
        MARKED.replace(
            "{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|im_end|>"
        )
    )
    assert trained(render(chat("hello", "one"), tok), tok) == "one<|im_end|>"


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="slow tokenizer"):
        render(TALK, Slow())  # type: ignore[arg-type]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_token_that_begins_in_the_prompt_is_not_trained(trim_offsets: bool) -> None:
    # The generation prompt ends with a space that merges with the answer's first word: " answer" is one token.
    spaced = CHATML.replace("m.role + '\\n'", "m.role + ' '").replace("assistant\\n", "assistant ")
    tok = tokenizer(spaced, trim_offsets=trim_offsets)
    assert len(tok(" answer", add_special_tokens=False)["input_ids"]) == 1
    assert trained(render(chat("hello", "answer: one"), tok), tok) == ": one<|im_end|>"
    # A space that stays a token of its own is the prompt's, and what follows it is the answer's.
    assert trained(render(chat("hello", "xyz"), tok), tok) == "xyz<|im_end|>"


def test_line_breaks_that_merge_over_the_border_are_not_trained() -> None:
    tok = tokenizer(CHATML)
    assert "ĊĊ" in tok.get_vocab()
    assert trained(render(chat("hello", "\none"), tok), tok) == "one<|im_end|>"


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_spaces_of_the_answer_are_trained(trim_offsets: bool) -> None:
    tok = tokenizer(CHATML, trim_offsets=trim_offsets)
    assert trained(render(chat("hello", " answer  x "), tok), tok) == " answer  x <|im_end|>"


@pytest.mark.parametrize("adds", ["", "<s>", "<s></s>"])
@pytest.mark.parametrize(("prompt", "completion"), [("one two", " answer"), ("", "one two"), ("<s>one ", "two</s>")])
def test_raw_text_is_one_tokenisation_with_one_bos_and_one_eos(adds: str, prompt: str, completion: str) -> None:
    tok = tokenizer(None, adds=adds)
    tokens = render(Text(prompt, completion, "a.jsonl:1"), tok)
    ids = tokens.ids.tolist()
    text = (prompt + completion).removeprefix("<s>").removesuffix("</s>")
    bos = "<s>" if adds or prompt.startswith("<s>") else ""
    assert tok.decode(ids) == f"{bos}{text}</s>"
    assert ids.count(tok.eos_token_id) == 1 and ids.count(tok.bos_token_id) == len(bos) // 3
    assert not tokens.trained[0] and tokens.trained[-1]
    if prompt:
        assert trained(tokens, tok) == completion.removesuffix("</s>") + "</s>"
    else:
        assert tokens.trained[1:].all()


def test_a_token_over_the_border_of_prompt_and_completion_is_not_trained() -> None:
    tok = tokenizer(None)
    assert trained(render(Text("one ", "answer: two", "a.jsonl:1"), tok), tok) == ": two</s>"
    assert render(Text("one ", "answer: two", "a.jsonl:1"), tok, loss_on="all").trained[1:].all()


def test_raw_text_needs_an_eos() -> None:
    tok = tokenizer(None)
    tok.eos_token = None
    assert "eos_token" in error_of(Text("", "one", "a.jsonl:1"), tok)


def test_mixed_rows_come_out_in_order_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.data.render.CHUNK", 3)
    tok = tokenizer(CHATML)
    rows = [
        Text("", f"t{i}", f"a:{i}") if i % 3 else Conversation(chat("q", f"c{i}").messages, f"a:{i}") for i in range(8)
    ]
    out = render_all(rows, tok)
    assert [tokens.source for tokens in out] == [row.source for row in rows]
    assert all(render(row, tok).ids.tolist() == tokens.ids.tolist() for row, tokens in zip(rows, out, strict=True))


CONTENT = st.text(alphabet=st.sampled_from("ab \n:é😀答<|"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)
TOKENIZERS = {
    (name, trim): tokenizer(template, trim_offsets=trim)
    for name, (template, _, _) in FAMILIES.items()
    for trim in (False, True)
}


@settings(max_examples=150, deadline=None)
@given(
    contents=st.lists(CONTENT, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0),
    key=st.sampled_from(sorted(TOKENIZERS)),
    loss_on=st.sampled_from(["assistant", "last", "completion", "all"]),
)
def test_what_is_trained_lies_inside_the_answers(contents: list[str], key: tuple[str, bool], loss_on: str) -> None:
    _, end, space = FAMILIES[key[0]]
    tok = TOKENIZERS[key]
    tokens = render(chat(*contents), tok, loss_on=loss_on)
    assert len(tokens.ids) == len(tokens.trained) and not tokens.trained[0]
    if loss_on == "all":
        assert tokens.trained[1:].all()
        return
    answers = contents[1::2] if loss_on == "assistant" else contents[-1:]
    pieces = trained(tokens, tok).split(end)
    assert pieces.pop() == "" and len(pieces) == len(answers)
    for piece, answer in zip(pieces, answers, strict=True):
        written = space + (answer.strip() if key[0] in ("llama3", "gemma") else answer)
        assert written.endswith(piece) and len(piece.strip()) >= len(written.strip()) - 1


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(max_size=8), completion=CONTENT, adds=st.sampled_from(["", "<s>", "<s></s>"]))
def test_raw_text_trains_a_tail_of_the_completion(prompt: str, completion: str, adds: str) -> None:
    tok = RAW[adds]
    tokens = render(Text(prompt, completion, "a.jsonl:1"), tok)
    assert len(tokens.ids) == len(tokens.trained) and tokens.trained[-1] == (len(tokens.ids) > 1)
    assert (completion + "</s>").endswith(trained(tokens, tok).lstrip("\ufffd"))


RAW = {adds: tokenizer(None, adds=adds) for adds in ("", "<s>", "<s></s>")}
