"""Masks on the chat templates of real model families, against other people's masks or against strings written by hand.

TRL ships the templates of the families as published, and for many a training variant whose `{% generation %}` markers
give a mask. Where both render the same text, our mask on the published template must be that of the markers, token for
token, but for what `BEYOND` and `OWN` name: what TRL trains more. Elsewhere (no variant, or one that renders history in
its own way) the trained text is written down here.

    family                          markers of TRL                by hand                      tools   reasoning
    Cohere (Aya), Cohere2           equal                         yes                          no      in content
    Llama 3                         equal                         yes                          no      in content
    Gemma 1/2, Gemma 3              + break                       yes                          no      in content
    Qwen2.5                         + break, + break of the head  yes                          yes     in content
    Qwen2.5-VL                      + break                       -                            no      in content
    Qwen3-Instruct-2507, Qwen3-VL   + break                       -                            yes     in content
    LFM2; its later revision        + break                       yes                          later   in content
    Phi-3, Phi-3.5                  + break, + last EOS           yes                          no      in content
    Qwen3                           + break, each turn alone      yes                          yes     both
    Qwen3.5 (both), Qwen3.6         + break, + head, turns alone  yes                          yes     both
    Qwen3.8                         + break, + head               yes                          yes     by key
    Nemotron 3 (four)               + break, + head, turns alone  yes                          no (1)  both
    gpt-oss                         + head, turns alone           yes                          yes     by key
    Muse Glimmer                    + head                        yes                          yes     by key
    LFM2.5 (three)                  + break (its own markers)     yes                          yes     both
    GLM-4.5                         equal, the variant as template; the published one is rejected      both
    DeepSeek-R1-Distill             + head, the variant as template; the published one is rejected     in content
    DeepSeek-V3                     -                             rejected but after results   calls   -
    Llama 3.1, Llama 3.2            none                          yes                          yes     in content
    ChatML, Zephyr, OLMo 2          not in TRL                    yes                          no      in content
    Granite                         not in TRL                    yes                          yes     -
    Mistral v1; v3                  not in TRL                    yes                          v3      -
    DeepSeek-V2                     not in TRL                    yes                          no      -

"break" is the line break after the terminator, "head" what the generation prompt supplies; "turns alone": a turn that
the template renders differently once it is history has a row of its own, compared with the variant up to that turn.
(1) Nemotron 3 asks with an open `<think>` and renders a call without reasoning as `<think></think>`, which is rejected.
"""

import json
from collections import Counter
from datetime import datetime
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from tests.chats import (
    CHATML,
    TOOLS,
    assistant,
    call,
    one,
    parts,
    rejection,
    row,
    runs,
    system,
    tokenizer,
    tool,
    trained_runs,
    user,
)
from tunekit.data.messages import prepare_messages
from tunekit.data.render import serving_examples
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation

IM = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
COHERE = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"]
PHI = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"]
GLM = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
MUSE = ["<|start|>", "<|message|>", "<|eot|>", "<|eom|>"]


def bars(name: str) -> str:
    """A token as DeepSeek writes it, between full-width bars."""
    return f"<\uff5c{name}\uff5c>"


DEEPSEEK = [bars("User"), bars("Assistant")]
END = bars("end▁of▁sentence")
THINK_TAGS = ["<think>", "</think>"]
CALL_TAGS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
LFM_CALLS = ["<|tool_call_start|>", "<|tool_call_end|>", "<|tool_list_start|>", "<|tool_list_end|>"]
LFM_CALLS += ["<|tool_response_start|>", "<|tool_response_end|>"]
DEEPSEEK_CALLS = [bars(f"tool▁{name}") for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
DEEPSEEK_CALLS += [bars(f"tool▁{name}") for name in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end")]

# The special tokens of each family; its tags for reasoning and calls are added tokens that are not special.
SPECIAL = {
    "cohere": COHERE,
    "cohere2": [*COHERE, "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
    "llama3": LLAMA,
    "llama3_1": LLAMA,
    "llama3_2": LLAMA,
    "gemma": TURNS,
    "gemma3": TURNS,
    "lfm2": IM,
    "lfm2_v2": IM,
    "lfm2_2_5": IM,
    "lfm2_2_5_v2": IM,
    "phi3": PHI,
    "phi3_5": PHI,
    "gptoss": HARMONY,
    "glm4moe": GLM,
    "muse_glimmer": MUSE,
    "deepseek_r1_distill": DEEPSEEK,
    "deepseekv3": DEEPSEEK,
}
BOS_EOS = {"deepseek": (bars("begin▁of▁sentence"), END), "phi": ("<s>", "<|endoftext|>")}
NEMOTRON = ["nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning"]
ASKING_TO_THINK = ["qwen3_5_think", "qwen3_6"]

TALK = row(system("Be kind."), user("hello"), assistant("an answer"), user("one"), assistant("two three"))
PLAIN = row(*TALK.messages[1:])
TAGGED = row(
    user("hello"),
    assistant("<think>\nhm\n</think>\n\nan answer"),
    user("one"),
    assistant("<think>\nwell\n</think>\n\ntwo three"),
)
KEYED = row(
    user("hello"),
    assistant("an answer", reasoning_content="hm"),
    user("one"),
    assistant("two three", reasoning_content="well"),
)
CALL = row(
    user("rain?"),
    assistant("", tool_calls=[call("weather", '{"city": "Rome"}')]),
    tool("dry"),
    assistant("No rain."),
    tools=TOOLS,
)
CALLS = row(
    user("rain?"),
    assistant(
        "I look.", tool_calls=[call("weather", '{"city": "Rome"}'), call("weather", '{"city": "Oslo"}', "call2")]
    ),
    tool("dry"),
    tool("wet", call_id="call2"),
    assistant("No and yes."),
    tools=TOOLS,
)
THOUGHT_CALL = row(
    user("rain?"),
    assistant("", reasoning_content="hm", tool_calls=[call("weather", '{"city": "Rome"}')]),
    tool("dry"),
    assistant("No rain.", reasoning_content="well"),
    tools=TOOLS,
)


def template_of(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def family(name: str, template: str | None = None) -> Any:
    """A small tokenizer with the special tokens of the family, and its template as published (or the one given)."""
    bos, eos = next((tokens for key, tokens in BOS_EOS.items() if name.startswith(key)), ("<s>", "</s>"))
    ordinary = THINK_TAGS + CALL_TAGS + LFM_CALLS + DEEPSEEK_CALLS
    special = [*SPECIAL.get(name, IM), bos, eos]
    return tokenizer(template or template_of(name), special=special, ordinary=ordinary, bos_token=bos, eos_token=eos)


def marked(given: Conversation, name: str, count: int) -> tuple[list[int], np.ndarray[Any, Any]]:
    """The ids of the first `count` messages and the mask of the markers in TRL's training variant."""
    tok = family(name, template_of(f"{name}_training"))
    messages = prepare_messages(given.messages, Rendering()).messages[:count]
    tools = json.loads(given.tools) if given.tools else None
    out = tok.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    return out["input_ids"], np.array(out["assistant_masks"], bool)


def beyond_ours(given: Conversation, name: str) -> list[str]:
    """The stretches that TRL's markers train and we do not, over all the rows of tokens that come of the row.

    Fails where texts differ, or where we train what the markers do not.
    """
    tok = family(name)
    found = []
    for tokens in parts(given, tok):
        own = "(message" in tokens.source
        count = int(tokens.source.split()[-1][:-1]) + 1 if own else len(given.messages)
        ids, mask = marked(given, name, count)
        assert tok.decode(tokens.ids) == tok.decode(ids) and tokens.ids.tolist() == ids
        assert not (tokens.trained & ~mask).any()
        found += runs(ids, mask & ~tokens.trained, tok)
    return found


EQUAL = [(name, given) for name in ("cohere", "cohere2", "llama3") for given in (TALK, TAGGED)]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("name", "given"), EQUAL, ids=name_of)
def test_the_mask_is_that_of_the_markers(name: str, given: Conversation) -> None:
    assert beyond_ours(given, name) == []


# What TRL trains beyond the turns: the line break that the template writes after the terminator; before the answer what
# the generation prompt supplies; and for Phi-3 the EOS that ends the document.
BREAKS = ["\n", "\n"]
HEADS = ["<think>\n", "\n"] * 2
# The line breaks of an empty block of reasoning are one token here as in Qwen's tokenizer; it begins in the prompt.
EMPTY_HEADS = ["<think>\n\n", "\n"] * 2
NO_THINKING_HEADS = ["<think>\n\n</think>\n\n", "\n"] * 2
BEYOND: list[tuple[str, Conversation, list[str]]] = [
    *[("gemma", given, BREAKS) for given in (PLAIN, TAGGED)],
    *[("gemma3", given, BREAKS) for given in (TALK, TAGGED)],
    *[(name, given, ["\n", "\n<|endoftext|>"]) for name in ("phi3", "phi3_5") for given in (TALK, TAGGED)],
    *[("lfm2", given, BREAKS) for given in (TALK, TAGGED)],
    *[("lfm2_v2", given, BREAKS) for given in (TALK, TAGGED, CALL, CALLS)],
    # Qwen2.5: also the line break of "<|im_start|>assistant\n", which its generation prompt has.
    *[("qwen2_5", given, ["\n"] * 4) for given in (TALK, TAGGED, CALL, CALLS)],
    *[("qwen2_5_vl", given, BREAKS) for given in (TALK, TAGGED)],
    *[("qwen3_instruct_2507", given, BREAKS) for given in (TALK, TAGGED, CALL, CALLS)],
    *[("qwen3_vl", given, BREAKS) for given in (TALK, TAGGED, CALL, CALLS)],
    *[(name, given, EMPTY_HEADS) for name in ASKING_TO_THINK for given in (CALL, CALLS)],
    *[(name, THOUGHT_CALL, HEADS) for name in ASKING_TO_THINK],
    *[("qwen3_5_nothink", given, NO_THINKING_HEADS) for given in (CALL, CALLS)],
    *[("qwen3_8", given, EMPTY_HEADS) for given in (TALK, CALL, CALLS)],
    *[("qwen3_8", given, HEADS) for given in (KEYED, THOUGHT_CALL)],
    *[("muse_glimmer", given, ["<|start|>assistant"] * 2) for given in (TALK, KEYED, CALL, THOUGHT_CALL)],
    ("gptoss", CALL, ["<|start|>assistant"] * 2),
]


@pytest.mark.parametrize(("name", "given", "expected"), BEYOND, ids=name_of)
def test_the_markers_train_nothing_more_than_named(name: str, given: Conversation, expected: list[str]) -> None:
    assert beyond_ours(given, name) == expected


# The families that render history in another way: what TRL trains beyond the first turn, in a row of its own.
OWN: list[tuple[str, Conversation, list[str]]] = [
    *[("qwen3", given, ["\n"]) for given in (TALK, TAGGED, KEYED, CALL, CALLS)],
    *[(name, TALK, EMPTY_HEADS[:2]) for name in ASKING_TO_THINK],
    *[(name, given, HEADS[:2]) for name in ASKING_TO_THINK for given in (TAGGED, KEYED)],
    ("qwen3_5_nothink", TALK, NO_THINKING_HEADS[:2]),
    *[(name, given, HEADS[:2]) for name in NEMOTRON for given in (TAGGED, KEYED)],
    *[("gptoss", given, ["<|start|>assistant"]) for given in (TALK, KEYED)],
]


@pytest.mark.parametrize(("name", "given", "expected"), OWN, ids=name_of)
def test_a_turn_in_a_row_of_its_own_has_the_mask_of_the_markers(
    name: str, given: Conversation, expected: list[str]
) -> None:
    tok = family(name)
    own, whole = parts(given, tok)
    assert own.source.endswith(")") and whole.source == given.source
    ids, mask = marked(given, name, int(own.source.split()[-1][:-1]) + 1)
    assert own.ids.tolist() == ids
    assert not (own.trained & ~mask).any()
    assert runs(ids, mask & ~own.trained, tok) == expected
    # The whole trains the last turn alone.
    last = one(given, tok, loss_on="last")
    assert whole.ids.tolist() == last.ids.tolist() and whole.trained.tolist() == last.trained.tolist()


MISTRAL_CONTROLS = [
    "INST",
    "/INST",
    "AVAILABLE_TOOLS",
    "/AVAILABLE_TOOLS",
    "TOOL_CALLS",
    "TOOL_RESULTS",
    "/TOOL_RESULTS",
]

# Templates of families that TRL does not ship, in the shape in which their makers publish them.
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
GRANITE = (
    "{%- if tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson + '<|end_of_text|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}{{- '<|start_of_role|>' + ('tool_response' if message['role'] == 'tool' else"
    " message['role']) + '<|end_of_role|>' + (message['content'] or '') }}{%- if message.tool_calls %}"
    "{{- '<|tool_call|>' + message.tool_calls | map(attribute='function') | list | tojson }}{%- endif %}"
    "{{- '<|end_of_text|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
OLMO = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}{% else %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
MISTRAL_V1 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
# Tools stand before the last user message, so that the head of an earlier turn is no prefix of the whole.
MISTRAL_V3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if tools and message is sameas (messages | selectattr('role', 'equalto', 'user') | list | last) %}"
    "{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message.tool_calls %}{{ '[TOOL_CALLS] [' }}"
    "{% for call in message.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}"
    "{% endif %}{{ call.function | tojson + (', ' if not loop.last else ']') }}{% endfor %}{{ eos_token }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '[TOOL_RESULTS] ' + {'content': message['content'], 'call_id': message.tool_call_id} | tojson }}"
    "{{ '[/TOOL_RESULTS]' }}"
    "{% endif %}{% endfor %}"
)
DEEPSEEK_V2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}"
    "{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
WRITTEN_HERE = {
    "chatml": (CHATML, IM),
    "zephyr": (ZEPHYR, []),
    "granite": (GRANITE, ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"]),
    "olmo2": (OLMO, []),
    "mistral_v1": (MISTRAL_V1, []),
    "mistral_v3": (MISTRAL_V3, [f"[{name}]" for name in MISTRAL_CONTROLS]),
    "deepseek_v2": (DEEPSEEK_V2, []),
}


def small(name: str) -> Any:
    """The family's tokenizer, for a template of TRL's or one written here."""
    if name not in WRITTEN_HERE:
        return family(name)
    template, special = WRITTEN_HERE[name]
    ends = {"granite": {"eos_token": "<|end_of_text|>"}, "chatml": {"eos_token": "<|im_end|>"}}
    return tokenizer(template, special=special, ordinary=THINK_TAGS, **ends.get(name, {}))


def turns(end: str, before: str = "") -> list[list[str]]:
    return [[f"{before}an answer{end}", f"{before}two three{end}"]]


CALL_JSON = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
CALL_XML = "<tool_call>\n<function=weather>\n<parameter=city>\n%s\n</parameter>\n</function>\n</tool_call>"
CALL_LFM = "<|tool_call_start|>[weather(city='Rome')]<|tool_call_end|>"
CALLS_LFM = "I look.<|tool_call_start|>[weather(city='Rome'), weather(city='Oslo')]<|tool_call_end|>"
CALL_LLAMA = '{"name": "weather", "parameters": {"city": "Rome"}}'
CALL_MUSE = (
    ' to=weather<|message|><atem:function_calls>\n<atem:invoke name="weather">\n'
    '<atem:parameter name="city">Rome</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>'
)
CALL_GPT = ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
ALL_TAGGED = [["<think>\nhm\n</think>\n\nan answer%s", "<think>\nwell\n</think>\n\ntwo three%s"]]
BLOCK = "<think>\n\n</think>\n\n"


def tagged(end: str) -> list[list[str]]:
    return [[text % end for text in part] for part in ALL_TAGGED]


# The trained stretches of each row of tokens that comes of a conversation.
BY_HAND: list[tuple[str, Conversation, list[list[str]]]] = [
    ("cohere", TALK, turns("<|END_OF_TURN_TOKEN|>")),
    ("cohere2", TALK, turns("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>")),
    ("gemma", PLAIN, turns("<end_of_turn>")),
    ("gemma3", TALK, turns("<end_of_turn>")),
    ("phi3", TALK, turns("<|end|>")),
    ("phi3_5", TALK, turns("<|end|>")),
    ("lfm2", TALK, turns("<|im_end|>")),
    ("lfm2_v2", CALL, [[f"{CALL_LFM}<|im_end|>", "No rain.<|im_end|>"]]),
    ("qwen2_5", CALL, [[f"{CALL_JSON % 'Rome'}<|im_end|>", "No rain.<|im_end|>"]]),
    (
        "qwen2_5",
        CALLS,
        [[f"I look.\n{CALL_JSON % 'Rome'}\n{CALL_JSON % 'Oslo'}<|im_end|>", "No and yes.<|im_end|>"]],
    ),
    # Qwen3 writes an empty block into the last turn and none into history; a call is history once there are results.
    ("qwen3", TALK, [[f"{BLOCK}an answer<|im_end|>"], [f"{BLOCK}two three<|im_end|>"]]),
    ("qwen3", CALL, [[f"{BLOCK}{CALL_JSON % 'Rome'}<|im_end|>"], [f"{BLOCK}No rain.<|im_end|>"]]),
    ("qwen3", TAGGED, [[part] for part in tagged("<|im_end|>")[0]]),
    ("qwen3", KEYED, [[part] for part in tagged("<|im_end|>")[0]]),
    # Reasoning before a call stays until the next question.
    (
        "qwen3",
        THOUGHT_CALL,
        [
            [
                f"<think>\nhm\n</think>\n\n{CALL_JSON % 'Rome'}<|im_end|>",
                "<think>\nwell\n</think>\n\nNo rain.<|im_end|>",
            ]
        ],
    ),
    ("qwen3_5_think", KEYED, [["hm\n</think>\n\nan answer<|im_end|>"], ["well\n</think>\n\ntwo three<|im_end|>"]]),
    ("qwen3_5_nothink", PLAIN, [["an answer<|im_end|>"], ["two three<|im_end|>"]]),
    ("qwen3_5_nothink", CALL, [[f"{CALL_XML % 'Rome'}<|im_end|>", "No rain.<|im_end|>"]]),
    ("qwen3_8", KEYED, [["hm\n</think>\n\nan answer<|im_end|>", "well\n</think>\n\ntwo three<|im_end|>"]]),
    ("nemotron_3_nano", KEYED, [["hm\n</think>\nan answer<|im_end|>"], ["well\n</think>\ntwo three<|im_end|>"]]),
    ("gptoss", TALK, [[f"{FINAL}an answer<|return|>"], [f"{FINAL}two three<|return|>"]]),
    (
        "gptoss",
        KEYED,
        [
            [f"{ANALYSIS}hm<|end|><|start|>assistant{FINAL}an answer<|return|>"],
            [f"{ANALYSIS}well<|end|><|start|>assistant{FINAL}two three<|return|>"],
        ],
    ),
    ("gptoss", CALL, [[CALL_GPT, f"{FINAL}No rain.<|return|>"]]),
    (
        "gptoss",
        THOUGHT_CALL,
        [
            [f"{ANALYSIS}hm<|end|><|start|>assistant{CALL_GPT}"],
            [f"{ANALYSIS}well<|end|><|start|>assistant{FINAL}No rain.<|return|>"],
        ],
    ),
    ("muse_glimmer", TALK, turns("<|eot|>", " to=user<|message|>")),
    ("muse_glimmer", CALL, [[CALL_MUSE, " to=user<|message|>No rain.<|eot|>"]]),
    ("lfm2_2_5", TALK, turns("<|im_end|>")),
    ("lfm2_2_5_v2", KEYED, [["<think>hm</think>an answer<|im_end|>"], ["<think>well</think>two three<|im_end|>"]]),
    ("lfm2_2_5_v2", TAGGED, [[part] for part in tagged("<|im_end|>")[0]]),
    ("lfm2_2_5_v2", CALLS, [[f"{CALLS_LFM}<|im_end|>", "No and yes.<|im_end|>"]]),
    *[(name, TALK, turns("<|eot_id|>")) for name in ("llama3", "llama3_1", "llama3_2")],
    *[(name, TAGGED, tagged("<|eot_id|>")) for name in ("llama3", "llama3_1", "llama3_2")],
    *[(name, CALL, [[f"{CALL_LLAMA}<|eot_id|>", "No rain.<|eot_id|>"]]) for name in ("llama3_1", "llama3_2")],
    ("chatml", TALK, turns("<|im_end|>")),
    ("chatml", TAGGED, tagged("<|im_end|>")),
    ("zephyr", TALK, turns("</s>")),
    ("granite", TALK, turns("<|end_of_text|>")),
    (
        "granite",
        CALL,
        [
            [
                '<|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]<|end_of_text|>',
                "No rain.<|end_of_text|>",
            ]
        ],
    ),
    ("olmo2", TALK, turns("</s>")),
    ("mistral_v1", PLAIN, turns("</s>")),
    ("mistral_v3", PLAIN, turns("</s>", " ")),
    (
        "mistral_v3",
        CALL,
        [['[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]</s>', " No rain.</s>"]],
    ),
    ("deepseek_v2", TALK, turns("</s>", " ")),
]


@pytest.mark.parametrize(("name", "given", "expected"), BY_HAND, ids=name_of)
def test_the_trained_text_is_the_one_written_by_hand(name: str, given: Conversation, expected: list[list[str]]) -> None:
    tok = small(name)
    assert [trained_runs(tokens, tok) for tokens in parts(given, tok)] == expected


# Under `reasoning: template` a conversation stays one row, and its turns are trained as history has them.
AS_HISTORY: list[tuple[str, Conversation, list[str]]] = [
    ("qwen3", TALK, ["an answer<|im_end|>", f"{BLOCK}two three<|im_end|>"]),
    ("qwen3", KEYED, ["an answer<|im_end|>", "<think>\nwell\n</think>\n\ntwo three<|im_end|>"]),
    (
        "qwen3",
        CALLS,
        [f"I look.\n{CALL_JSON % 'Rome'}\n{CALL_JSON % 'Oslo'}<|im_end|>", f"{BLOCK}No and yes.<|im_end|>"],
    ),
    ("gptoss", TALK, [f"{FINAL}an answer<|end|>", f"{FINAL}two three<|return|>"]),
    ("gptoss", THOUGHT_CALL, [CALL_GPT, f"{ANALYSIS}well<|end|><|start|>assistant{FINAL}No rain.<|return|>"]),
    ("lfm2_2_5_v2", KEYED, ["an answer<|im_end|>", "<think>well</think>two three<|im_end|>"]),
    ("llama3", KEYED, ["an answer<|eot_id|>", "two three<|eot_id|>"]),
]


@pytest.mark.parametrize(("name", "given", "expected"), AS_HISTORY, ids=name_of)
def test_reasoning_template_trains_turns_as_the_history_has_them(
    name: str, given: Conversation, expected: list[str]
) -> None:
    tok = small(name)
    assert trained_runs(one(given, tok, reasoning="template"), tok) == expected


# Rows that a family cannot say, or not as its generation prompt asks for it, and the words of the reason.
REJECTED: list[tuple[str, Conversation, str]] = [
    ("gemma", TALK, "System role not supported"),
    ("llama3", CALL, "does not render tools"),
    ("llama3", KEYED, "does not render its reasoning as written"),
    ("llama3_1", CALLS, "only supports single tool-calls"),
    ("lfm2", CALL, "does not render all of its 1 tool calls"),
    ("gptoss", CALLS, "does not render all of its 2 tool calls"),
    ("phi3", row(user("rain?"), assistant("I look."), tool("wet"), assistant("yes")), "message 2 (tool)"),
    ("idefics3", PLAIN, "message 0 (user)"),  # takes content as a list of parts only
    ("qwen3_8", TAGGED, "block of reasoning of its own"),
    ("qwen3_5_nothink", KEYED, "data.reasoning: drop"),
    *[(name, PLAIN, "<think>") for name in NEMOTRON],
    ("deepseek_r1_distill", PLAIN, "differently when it asks for the turn"),
    ("deepseekv3", PLAIN, "differently when it asks for the turn"),
    ("glm4moe", PLAIN, "without a terminator"),
    ("glm4moe", CALL, "without a terminator"),
]


@pytest.mark.parametrize(("name", "given", "words"), REJECTED, ids=name_of)
def test_what_a_family_cannot_say_is_rejected_with_the_reason(name: str, given: Conversation, words: str) -> None:
    assert words in rejection(given, small(name))


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3", *NEMOTRON])
@pytest.mark.parametrize("given", [PLAIN, TAGGED])
def test_a_template_that_asks_with_an_open_tag_says_what_works_and_it_does(name: str, given: Conversation) -> None:
    keeps_reasoning = name in NEMOTRON
    if given is TAGGED and keeps_reasoning:
        assert parts(given, small(name))
        return
    message = rejection(given, small(name))
    assert "asks for an answer with an open <think>" in message and "a copy of the template that asks" in message
    assert ('under "reasoning_content"' in message) == keeps_reasoning
    if keeps_reasoning:
        assert parts(KEYED, small(name))
    elif given is PLAIN:
        template = template_of(name).replace("<\uff5cAssistant\uff5c><think>\\n", "<\uff5cAssistant\uff5c>")
        assert template != template_of(name)
        assert "".join(trained_runs(one(given, family(name, template)), small(name))) == f"an answer{END}two three{END}"


def test_a_template_that_wants_ids_of_nine_characters_says_so() -> None:
    calling = assistant("", tool_calls=[call("weather", "{}", "call1")])
    given = row(user("rain?"), calling, tool("dry", call_id="call1"), assistant("No rain."), tools=TOOLS)
    assert 'an "id" of 9 letters and digits' in rejection(given, small("mistral_v3"))
    assert "of 9" not in rejection(TALK, small("gemma"))


def test_a_system_message_that_a_template_leaves_out_is_missed_though_its_word_is_there() -> None:
    given = row(system("hello"), *PLAIN.messages)
    assert "message 0 (system)" in rejection(given, small("mistral_v3"))
    given = row(user("rain 1?"), assistant("I look."), tool("1"), assistant("yes"))
    assert "message 2 (tool)" in rejection(given, small("phi3"))


@pytest.mark.parametrize(("name", "written"), [("llama3_2", "%d %b %Y"), ("gptoss", "%Y-%m-%d")])
def test_templates_that_write_the_date_write_the_given_one(name: str, written: str) -> None:
    tok, then, now = small(name), datetime(2001, 2, 3), datetime.now()
    given, today = (tok.decode(parts(TALK, tok, date=day)[0].ids) for day in ("2001-02-03", None))
    assert then.strftime(written) in given
    assert given == today.replace(now.strftime(written), then.strftime(written))


def test_gpt_oss_answers_after_the_reasoning_that_it_is_asked_with() -> None:
    # The answer makes the template strip the reasoning before the call, which the model has seen when it answers.
    tok, variant = family("gptoss"), family("gptoss", template_of("gptoss_training"))
    given = row(user("<think>so</think> rain?"), *THOUGHT_CALL.messages[1:], tools=TOOLS)
    calling, answer = parts(given, tok)
    messages = prepare_messages(given.messages, Rendering()).messages
    options = {"tools": json.loads(TOOLS), "tokenize": False}
    asked = tok.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
    assert f"{ANALYSIS}hm<|end|>" in asked
    assert asked not in tok.apply_chat_template(messages, **options)
    assert tok.decode(answer.ids[~answer.trained]) == asked
    # The markers of the variant are checked where its rendering is the row, and no server is asked to render the other.
    assert [tokens.trained.tolist() for tokens in parts(given, variant)] == [
        tokens.trained.tolist() for tokens in (calling, answer)
    ]
    notes: Counter[str] = Counter()
    assert parts(given, tok, reasoning="template", loss_on="last", notes=notes)[0].source == given.source
    assert [note.split(" (")[0] for note in notes] == [
        "turns trained after a history without the reasoning that they are asked with"
    ]
    assert [example["ids"] for example in serving_examples([given], tok)] == [calling.ids.tolist()]


@pytest.mark.parametrize("name", ["llama3_1", "gptoss", "qwen3", "glm4moe"])
def test_results_and_arguments_that_a_template_writes_as_json_are_there(name: str) -> None:
    tok = family(name, template_of(f"{name}_training") if name == "glm4moe" else None)
    calling = assistant("", tool_calls=[call("weather", json.dumps({"city": 'the "Eternal"\nCity è'}))])
    given = row(user("rain?"), calling, tool('it is "dry"\nè'), assistant("No rain."), tools=TOOLS)
    assert "No rain." in trained_runs(parts(given, tok)[-1], tok)[-1]


def test_deepseek_v3_renders_calls_in_the_older_form_and_answers_after_results() -> None:
    # Its generation prompt writes "<think>" but after results, so that only the answer to these begins as it is asked.
    tok = family("deepseekv3")
    messages = [
        {**message, "train": message["role"] != "assistant" or i == 3} for i, message in enumerate(CALL.messages)
    ]
    expected = [f"No rain.{END}"]
    tokens = one(Conversation(tuple(messages), "a.jsonl:1"), tok)
    assert trained_runs(tokens, tok) == expected
    called = 'weather\n```json\n{"city": "Rome"}\n```'
    assert f"{bars('tool▁sep')}{called}{bars('tool▁call▁end')}" in tok.decode(tokens.ids)


def test_deepseek_r1_learns_its_reasoning_from_the_training_variant_as_template() -> None:
    # Its markers take in the role and "<think>\n", which the generation prompt supplies.
    tok = family("deepseek_r1_distill", template_of("deepseek_r1_distill_training"))
    tokens = one(TAGGED, tok)
    assert trained_runs(tokens, tok) == [
        f"hm\n</think>\n\nan answer{END}",
        f"well\n</think>\n\ntwo three{END}",
    ]
    ids, mask = marked(TAGGED, "deepseek_r1_distill", 4)
    assert tokens.ids.tolist() == ids
    assert runs(ids, mask & ~tokens.trained, tok) == [f"{bars('Assistant')}<think>\n"] * 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (TALK, ["\n<think></think>\nan answer<|user|>", "\n<think></think>\ntwo three<|user|>"]),
        (
            CALL,
            [
                "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"
                "<|observation|>",
                "\n<think></think>\nNo rain.<|user|>",
            ],
        ),
    ],
)
def test_glm_ends_its_turns_with_the_tag_of_the_next_role_in_the_training_variant(
    given: Conversation, expected: list[str]
) -> None:
    tok = family("glm4moe", template_of("glm4moe_training"))
    tokens = one(given, tok)
    assert trained_runs(tokens, tok) == expected
    ids, mask = marked(given, "glm4moe", len(given.messages))
    assert tokens.ids.tolist() == ids
    assert not (tokens.trained & ~mask).any()
    assert runs(ids, mask & ~tokens.trained, tok) == []


@pytest.mark.parametrize("name", ["lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"])
@pytest.mark.parametrize("given", [TALK, TAGGED, KEYED, CALL, CALLS])
def test_the_mask_is_that_of_markers_which_the_published_template_has(name: str, given: Conversation) -> None:
    tok = family(name)
    messages = prepare_messages(given.messages, Rendering()).messages
    tools = json.loads(given.tools) if given.tools else None
    tokens = one(given, tok, reasoning="template")
    out = tok.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert tokens.ids.tolist() == out["input_ids"]
    mask = np.array(out["assistant_masks"], bool)
    assert not (tokens.trained & ~mask).any()
    assert runs(tokens.ids, mask & ~tokens.trained, tok) == ["\n", "\n"]
