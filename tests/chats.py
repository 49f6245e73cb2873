"""What the tests of rendering share: a small byte-level tokenizer, templates of several shapes, messages and rows."""

import json
from collections import Counter
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tunekit.data.render import render_all
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation, Rejected, Text, Tokens

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
# gpt-oss: a turn ends with another token once it is history, and the reasoning stands before it in a frame of its own.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if loop.last and m.thinking is defined %}{{ '<|im_start|>assistant think\\n' + m.thinking + '<|im_end|>' }}"
    "{% endif %}{{ '<|im_start|>assistant say\\n' + m.content + ('<|return|>' if loop.last else '<|im_end|>') }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
# Phi-3: an EOS ends the document.
ENDING = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name + call.function.arguments | tojson"
    " + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "<|return|>"]
# " answer" is one token and so are two line breaks; everything else is one token a byte.
MERGES = [("Ġ", "a"), ("Ġa", "n"), ("Ġan", "s"), ("Ġans", "w"), ("Ġansw", "e"), ("Ġanswe", "r"), ("Ċ", "Ċ")]
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "What the weather is.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "description": "Where."}},
                    "required": ["city"],
                },
            },
        }
    ]
)


def tokenizer(
    template: str | None,
    *,
    special: list[str] | None = None,
    ordinary: list[str] | None = None,
    trim_offsets: bool = False,
    adds: str = "",
    **tokens: str,
) -> Any:
    """A byte-level BPE with `MERGES`; `adds` names what it puts around raw text ("<s>", "<s></s>").

    `special` are its special tokens beside these two, `ordinary` are added tokens that are not special.
    """
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    bpe = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=MERGES))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "</s>"])
    bpe.add_tokens([AddedToken(token, normalized=False) for token in ordinary or []])
    bpe.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if adds:
        ids = [(token, bpe.token_to_id(token)) for token in ("<s>", "</s>")]
        single = "<s> $A </s>" if "</s>" in adds else "<s> $A"
        bpe.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    names = {"bos_token": "<s>", "eos_token": "</s>", **tokens}
    extra = SPECIAL if special is None else special
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, extra_special_tokens=extra, **names)
    fast.chat_template = template
    return fast


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: str, name: str = "weather", call_id: str = "call00001") -> dict[str, Any]:
    return {"role": "tool", "name": name, "tool_call_id": call_id, "content": content}


def call(name: str, arguments: str, call_id: str = "call00001") -> dict[str, Any]:
    """A tool call with its arguments as JSON text, as data files have them."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def row(*messages: dict[str, Any], tools: str | None = None) -> Conversation:
    return Conversation(messages, "a.jsonl:1", tools)


def chat(*contents: str, **marks: bool) -> Conversation:
    """User and assistant in turn; `m1=False` marks message 1 as not to be trained."""
    messages = [(user, assistant)[i % 2](content) for i, content in enumerate(contents)]
    for key, train in marks.items():
        messages[int(key[1:])]["train"] = train
    return row(*messages)


def parts(given: Conversation | Text, tok: Any, notes: Counter[str] | None = None, **options: Any) -> list[Tokens]:
    """What comes of a row that must not be rejected."""
    (rendered,) = render_all([given], tok, Rendering(**options), notes)
    assert not isinstance(rendered, Rejected), rendered
    return rendered


def one(given: Conversation | Text, tok: Any, **options: Any) -> Tokens:
    """The one row of tokens that must come of a row."""
    (tokens,) = parts(given, tok, **options)
    return tokens


def rejection(given: Conversation | Text, tok: Any, **options: Any) -> str:
    """Reason and fix of a row that must be rejected."""
    (rendered,) = render_all([given], tok, Rendering(**options))
    assert isinstance(rendered, Rejected), rendered
    assert rendered.source == "a.jsonl:1" and rendered.row
    return f"{rendered.reason}\n{rendered.fix}"


def trained(tokens: Tokens, tok: Any) -> str:
    return str(tok.decode(tokens.ids[tokens.trained]))


def trained_runs(tokens: Tokens, tok: Any) -> list[str]:
    """The text of each stretch of trained tokens."""
    return runs(tokens.ids, tokens.trained, tok)


def runs(ids: Any, chosen: Any, tok: Any) -> list[str]:
    """The text of each stretch of the ids that are chosen."""
    found: list[list[int]] = [[]]
    for token, take in zip(ids, chosen, strict=True):
        if take:
            found[-1].append(int(token))
        elif found[-1]:
            found.append([])
    return [str(tok.decode(run)) for run in found if run]
