"""What holds of masks for every conversation, template and option: drawn at random, judged without the code under test.

Who says what shows in the letters: system, users and tools each have one of their own, and so has every assistant turn.
"""

import json
from importlib.resources import files
from typing import Any

from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from tests.chats import (
    CHANNELS,
    CHATML,
    ENDING,
    GEMMA,
    LLAMA3,
    MARKED,
    MISTRAL,
    SMOLLM,
    THINKING,
    TOOLS,
    TOOLS_TEMPLATE,
    assistant,
    call,
    parts,
    system,
    tokenizer,
    tool,
    trained,
    user,
)
from tunekit.data.formats import convert
from tunekit.data.messages import prepare_messages
from tunekit.data.render import render_all
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation, Rejected, Text, Tokens
from tunekit.data.template import possible_terminators

SYSTEM, USER, TOOL = "Ж", "Ω", "中"
TURN = [chr(0x3B1 + i) for i in range(9)]  # small Greek letters
LOSS_ON = ["assistant", "last", "completion", "all"]

PUBLISHED = ["qwen3", "qwen3_5_think", "qwen3_8", "gptoss", "lfm2_2_5_v2", "phi3", "llama3_1", "cohere2", "deepseekv3"]
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end|>",
    "<|user|>",
]
SPECIAL += ["<|assistant|>", "<|system|>", "<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"]
SPECIAL += ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>"]
# Templates that render every question and answer; the last two end a turn with another token later.
PLAIN = {
    "chatml": CHATML,
    "smollm": SMOLLM,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "marked": MARKED,
    "ending": ENDING,
    "tools": TOOLS_TEMPLATE,
    "thinking": THINKING,
    "channels": CHANNELS,
}
TEMPLATES = PLAIN | {name: (files("trl") / "chat_templates" / f"{name}.jinja").read_text() for name in PUBLISHED}
TOKENIZERS = {
    (name, trim): tokenizer(text, special=None if name in PLAIN else SPECIAL, trim_offsets=trim)
    for name, text in TEMPLATES.items()
    for trim in (False, True)
}


def text_of(letter: str) -> st.SearchStrategy[str]:
    """A text of one letter, white space and what looks like markup; it holds the letter."""
    return st.text(alphabet=st.sampled_from([letter, " ", "\n", ":", "<", "|", ">"]), max_size=8).map(
        lambda text: text + letter
    )


@st.composite
def turns(draw: st.DrawFn, letter: str, reasons: bool) -> dict[str, Any]:
    """An assistant message that says `letter`; with `reasons` it may reason, before its answer or under a key."""
    message = assistant(draw(text_of(letter)))
    how = draw(st.sampled_from(["", "key", "tag", "end"])) if reasons else ""
    if how == "key":
        message["reasoning_content"] = draw(text_of(letter))
    elif how:
        opening = "<think>\n" if how == "tag" else ""
        message["content"] = f"{opening}{draw(text_of(letter))}\n</think>\n\n{message['content']}"
    if draw(st.integers(0, 4)) == 0:
        message["train"] = False
    return message


@st.composite
def conversations(draw: st.DrawFn, plain: bool = False) -> Conversation:
    """System or not, one to three questions; half of those that are not `plain` with reasoning, or with calls."""
    reasons, calls = (not plain and draw(st.booleans()) for _ in range(2))
    messages = [system(draw(text_of(SYSTEM)))] if draw(st.booleans()) else []
    letters = iter(TURN)
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(text_of(USER))))
        for _ in range(draw(st.integers(0, 2)) if calls else 0):
            letter = next(letters)
            caller = draw(turns(letter, reasons))
            if draw(st.booleans()):
                caller["content"] = ""
            called = call("weather", json.dumps({"city": letter}, ensure_ascii=False))
            caller["tool_calls"] = [called] * draw(st.integers(1, 2))
            messages += [caller, *[tool(draw(text_of(TOOL))) for _ in caller["tool_calls"]]]
        messages.append(draw(turns(next(letters), reasons)))
    tools = TOOLS if calls and draw(st.booleans()) else None
    return Conversation(tuple(messages), "a.jsonl:1", tools)


OPTIONS = st.fixed_dictionaries(
    {
        "loss_on": st.sampled_from(LOSS_ON[:3]),
        "system": st.sampled_from([None, SYSTEM]),
        "system_mode": st.sampled_from(["keep", "drop"]),
        "reasoning": st.sampled_from(["keep", "template", "drop"]),
    }
)


def as_given(row: Conversation, options: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """What a server would hand to the tokenizer's `apply_chat_template`."""
    chosen = {key: options[key] for key in ("system", "system_mode", "reasoning")}
    messages = prepare_messages(row.messages, Rendering(**chosen)).messages
    return messages, json.loads(row.tools) if row.tools else None


def stretches(tokens: Tokens) -> list[tuple[int, int]]:
    """The positions `[first, last)` of each run of trained tokens."""
    edges = [i for i in range(1, len(tokens.ids)) if tokens.trained[i] != tokens.trained[i - 1]]
    edges += [len(tokens.ids)] * (len(edges) % 2)
    return list(zip(edges[::2], edges[1::2], strict=True))


@settings(max_examples=300, deadline=None)
@given(row=conversations(), key=st.sampled_from(sorted(TOKENIZERS)), options=OPTIONS)
def test_trained_is_what_the_assistant_says_after_the_prompt_that_asks_for_it(
    row: Conversation, key: tuple[str, bool], options: dict[str, Any]
) -> None:
    tok = TOKENIZERS[key]
    (rendered,) = render_all([row], tok, Rendering(**options))
    event("rejected" if isinstance(rendered, Rejected) else "rendered")
    if isinstance(rendered, Rejected):
        assert rendered.reason and rendered.source == row.source
        return
    messages, tools = as_given(row, options)
    terminators = possible_terminators(tok)
    for tokens in rendered:
        assert len(tokens.ids) == len(tokens.trained) > 0 and not tokens.trained[0]
        for first, last in stretches(tokens):
            said = tok.decode(tokens.ids[first:last])
            assert not set(said) & {SYSTEM, USER, TOOL}
            (letter,) = set(said) & set(TURN)
            assert int(tokens.ids[last - 1]) in terminators
            index = next(i for i, message in enumerate(messages) if letter in str(message))
            asked = asked_by_server(tok, messages[:index], tools)
            before = tok.decode(tokens.ids[:first])
            # Two line breaks are one token here, which may begin in the prompt.
            if options["reasoning"] == "template" and key[0] == "gptoss":
                continue  # of what leads to an answer it strips the reasoning when the answer is there
            assert before.removesuffix("\n") == asked or before == asked, (before, asked)


def asked_by_server(tok: Any, messages: list[dict[str, Any]], tools: Any) -> str:
    """The prompt, with the arguments of calls as text where the template wants that (DeepSeek)."""
    options = {"tools": tools, "add_generation_prompt": True, "tokenize": False}
    try:
        return str(tok.apply_chat_template(messages, **options))
    except TypeError:
        texts = json.loads(json.dumps(messages))
        for each in (each for message in texts for each in message.get("tool_calls", [])):
            each["function"]["arguments"] = json.dumps(each["function"]["arguments"], ensure_ascii=False)
        return str(tok.apply_chat_template(texts, **options))


@settings(max_examples=150, deadline=None)
@given(row=conversations(), key=st.sampled_from(sorted(TOKENIZERS)))
def test_every_turn_is_trained_exactly_once_over_the_rows_of_its_conversation(
    row: Conversation, key: tuple[str, bool]
) -> None:
    tok = TOKENIZERS[key]
    (rendered,) = render_all([row], tok)
    assume(not isinstance(rendered, Rejected))
    said = "".join(trained(tokens, tok) for tokens in rendered)  # type: ignore[union-attr]
    for i, message in enumerate(row.messages):
        if message["role"] == "assistant":
            letter = next(letter for letter in TURN if letter in str(message))
            texts = [message["content"], message.get("reasoning_content", ""), str(message.get("tool_calls", ""))]
            count = sum(text.count(letter) for text in texts) if message.get("train", True) else 0
            assert said.count(letter) == count, f"message {i}: {letter}"


@settings(max_examples=150, deadline=None)
@given(
    row=conversations(plain=True),
    key=st.sampled_from([key for key in sorted(TOKENIZERS) if key[0] in PLAIN]),
    loss_on=st.sampled_from(LOSS_ON),
)
def test_plain_conversations_are_never_rejected(row: Conversation, key: tuple[str, bool], loss_on: str) -> None:
    assume(key[0] not in ("gemma", "mistral") or row.messages[0]["role"] != "system")
    tok = TOKENIZERS[key]
    rendered = parts(row, tok, loss_on=loss_on)
    if loss_on == "all":
        (whole,) = rendered
        marked = [message for message in row.messages if not message.get("train", True)]
        untrained = tok.decode(whole.ids[~whole.trained])
        assert all(letter not in trained(whole, tok) for m in marked for letter in set(m["content"]) & set(TURN))
        assert not set(untrained) & {SYSTEM, USER} or not marked


@settings(max_examples=100, deadline=None)
@given(row=conversations(), key=st.sampled_from(sorted(TOKENIZERS)), options=OPTIONS)
def test_tokens_are_those_of_the_template_alone(
    row: Conversation, key: tuple[str, bool], options: dict[str, Any]
) -> None:
    assume(key[0] not in ("gptoss", "deepseekv3"))  # these have rows that no one call renders, see above
    tok = TOKENIZERS[key]
    (rendered,) = render_all([row], tok, Rendering(**options))
    assume(not isinstance(rendered, Rejected))
    messages, tools = as_given(row, options)
    shift = len(row.messages) - len(messages)
    for tokens in rendered:  # type: ignore[union-attr]
        number = int(tokens.source.split()[-1][:-1]) + 1 - shift if "(message" in tokens.source else len(messages)
        expected = tok.apply_chat_template(messages[:number], tools=tools, return_dict=False)
        assert tokens.ids.tolist() == expected


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["<|im_end|>", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["role", "content", "tool_calls", "train", "reasoning_content", "thinking", "name"]
VALUES = JSON | st.sampled_from(["user", "assistant", "system", "tool", "hello", "<think>x</think>y"])
CALLS = st.lists(
    st.dictionaries(st.sampled_from(["function", "name", "arguments", "id"]), JSON, max_size=3)
    | st.builds(lambda value: {"function": {"name": "f", "arguments": value}}, JSON),
    max_size=2,
)
MESSAGES = st.lists(
    JSON
    | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)
    | st.builds(
        lambda role, content, calls: {"role": role, "content": content, "tool_calls": calls},
        st.sampled_from(["user", "assistant", "tool"]),
        st.text(max_size=5) | st.none(),
        CALLS,
    ),
    max_size=4,
)


@st.composite
def damaged(draw: st.DrawFn) -> list[Any]:
    """The messages of a good conversation, in one of which one key holds some JSON."""
    messages = list(draw(conversations()).messages)
    i = draw(st.integers(0, len(messages) - 1))
    messages[i] = {**messages[i], draw(st.sampled_from(KEYS)): draw(VALUES)}
    return messages


@settings(max_examples=300, deadline=None)
@given(
    messages=MESSAGES | damaged(),
    tools=st.none() | JSON | JSON.map(json.dumps) | st.just(TOOLS),
    key=st.sampled_from(sorted(TOKENIZERS)),
    options=OPTIONS,
    loss_on=st.sampled_from(LOSS_ON),
)
def test_no_json_crashes(
    messages: list[Any], tools: Any, key: tuple[str, bool], options: dict[str, Any], loss_on: str
) -> None:
    (row,) = convert([({"messages": messages, "tools": tools}, "a.jsonl:1")], format="messages")
    if isinstance(row, Conversation):
        (rendered,) = render_all([row], TOKENIZERS[key], Rendering(**{**options, "loss_on": loss_on}))
        event("rejected" if isinstance(rendered, Rejected) else "rendered")
        if isinstance(rendered, Rejected):
            assert rendered.reason and rendered.source == "a.jsonl:1"


RAW = {adds: tokenizer(None, adds=adds) for adds in ("", "<s>", "<s></s>")}


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.text(max_size=8),
    completion=st.text(alphabet=st.sampled_from("ab \n:é😀答<|"), min_size=1, max_size=12).filter(str.strip),
    adds=st.sampled_from(["", "<s>", "<s></s>"]),
)
def test_raw_text_trains_the_completion_and_of_the_prompt_at_most_its_last_white_space(
    prompt: str, completion: str, adds: str
) -> None:
    tok = RAW[adds]
    (rendered,) = render_all([Text(prompt, completion, "a.jsonl:1")], tok)
    first_is_trained = bool(prompt or adds)
    if isinstance(rendered, Rejected):
        assert not first_is_trained and len(tok(completion.strip())["input_ids"]) == 1
        return
    (tokens,) = rendered
    assert len(tokens.ids) == len(tokens.trained) and tokens.trained[-1] and not tokens.trained[0]
    said = trained(tokens, tok).removesuffix("</s>")
    white_space = prompt[len(prompt.rstrip()) :]
    assert (white_space + completion).endswith(said.lstrip("\ufffd"))
    assert not first_is_trained or (said.endswith(completion) and len(said) <= len(completion) + 1)
