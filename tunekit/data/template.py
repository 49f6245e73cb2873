"""The tokenizer's chat template, and what it and the tokenizer's special tokens say about a text.

One call renders one conversation: a call for many is not faster, and would not say which of them the template refuses.
"""

import json
import re
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from tunekit.data.messages import Message, Prepared, older_form, split_reasoning, strings
from tunekit.data.rows import Refused
from tunekit.errors import DataError

Tools: TypeAlias = list[dict[str, Any]]

# What a template may raise: its own raise_exception, or Python's errors from an expression on a message.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# The parts of a date that `strftime` writes.
DATE_PARTS = [f"%{part}" for part in ("-d", "-m", *"aAbBcCdDeFGhHIjmMpRSTuUVwWxXyY")]
IDS = (
    'Give each tool call an "id" of 9 letters and digits, and each tool message the id of its call as "tool_call_id"; '
    "or set data.chat_template: path.jinja, a template without this rule."
)
CHANGE = "Change the row (or data.system, if that adds the system message), or set data.chat_template: path.jinja."
# "Tool call IDs should be alphanumeric strings with length 9!" (Mistral)
NEEDS_IDS = re.compile(r"\bids?\b.*\b9\b", re.IGNORECASE)


def possible_terminators(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that can end a turn: eos and the special tokens, without unk and bos (where bos is not eos too)."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    return (special - {tokenizer.unk_token_id, tokenizer.bos_token_id}) | ({tokenizer.eos_token_id} - {None})


class ChatTemplate:
    """Renders conversations, on a given `date` or today.

    Raises `DataError` where the tokenizer has no template, or one that is no template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, date: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.date = date
        self.terminators = frozenset(possible_terminators(tokenizer))
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self._special = _Tokens(special)
        self._ends = _Tokens({token for token in special if tokenizer.convert_tokens_to_ids(token) in self.terminators})
        self._tools: dict[str, Tools] = {}
        self._left_out: dict[tuple[Any, ...], frozenset[int]] = {}
        try:
            _variables_of(self.text(None))
        except ValueError as error:
            raise DataError(
                f"{source}: a conversation needs a chat template, and this tokenizer has none (a base model?)",
                "Set data.chat_template: path.jinja, or write the rows as prompt and completion strings.",
            ) from error
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"the chat template is not valid Jinja: line {error.lineno}: {error.message}",
                "Correct it (data.chat_template, or chat_template.jinja in the model's folder).",
            ) from error

    def text(self, tools: Tools | None) -> str:
        """The template itself; a tokenizer may have another one for conversations with tools."""
        text = str(self.tokenizer.get_chat_template(tools=tools))
        return text if self.date is None or "strftime_now" not in text else _clock(self.date) + text

    def has_markers(self, tools: Tools | None) -> bool:
        """Whether it marks what the model writes by `{% generation %}`."""
        return GENERATION.search(self.text(tools)) is not None

    def render(self, messages: list[Message], tools: Tools | None, *, add_generation_prompt: bool = False) -> str:
        """Raises `Refused` where the template refuses the messages."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,  # type: ignore[arg-type]
                    chat_template=self.text(tools),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)
            fix = IDS if NEEDS_IDS.search(str(error)) else CHANGE
            raise Refused(f"the chat template refuses the messages ({roles}): {error}", fix) from error

    def render_either_form(
        self, messages: list[Message], tools: Tools | None, *, add_generation_prompt: bool = False
    ) -> tuple[list[Message], str]:
        """The messages and their rendering; a template that refuses their tool calls gets them in the older form."""
        try:
            return messages, self.render(messages, tools, add_generation_prompt=add_generation_prompt)
        except Refused as refused:
            if not any(message.get("tool_calls") for message in messages):
                raise
            try:
                older = [older_form(message) for message in messages]
                return older, self.render(older, tools, add_generation_prompt=add_generation_prompt)
            except (Refused, RecursionError):
                raise refused from None

    def marked(self, messages: list[Message], tools: Tools | None) -> list[tuple[int, int]]:
        """The characters `[start, end)` that `{% generation %}` marks in the rendering of the messages."""
        variables: dict[str, Any] = self.tokenizer.special_tokens_map
        rendering: Any = render_jinja_template(
            [messages],
            tools=tools,  # type: ignore[arg-type]
            chat_template=self.text(tools),
            return_assistant_tokens_mask=True,
            **variables,
        )
        return rendering[1][0]

    def left_out(self, messages: list[Message], tools: Tools | None) -> frozenset[int]:
        """The messages, not the assistant's, that the template leaves out whatever they say.

        Found once for each sequence of roles, by a word in each message that no other text holds.
        """
        kind = (tools is None, *((message["role"], "tool_calls" in message) for message in messages))
        if kind not in self._left_out:
            words = {i: f"message{i}word" for i, message in enumerate(messages) if message["role"] != "assistant"}
            asked = [{**message, "content": words[i]} if i in words else message for i, message in enumerate(messages)]
            try:
                _, text = self.render_either_form(asked, tools)
            except Refused:  # it wants a certain content there
                words = {}
            self._left_out[kind] = frozenset(i for i, word in words.items() if word not in text)
        return self._left_out[kind]

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes to ask for an answer; `""` where it refuses the simplest question."""
        question: list[Message] = [{"role": "user", "content": "?"}]
        try:
            asked = self.render(question, None, add_generation_prompt=True)
            return asked[shared_length(asked, self.render(question, None)) :]
        except Refused:
            return ""

    def parse_tools(self, text: str | None) -> Tools | None:
        """The tool schemas of a row. Raises `Refused` where the template leaves them out."""
        if text is None:
            return None
        if text not in self._tools:
            self._tools[text] = self._parse_tools(text)
        return self._tools[text]

    def _parse_tools(self, text: str) -> Tools:
        tools: Tools = json.loads(text)
        if "tools" not in _variables_of(self.text(tools)):
            raise Refused(
                "the row has tools, and the chat template does not render tools",
                "Take the tools out of the row, or set data.chat_template: path.jinja, a template that renders them.",
            )
        self._refuse_special("tools", strings(tools))
        return tools

    def refuse_special_tokens(self, prepared: Prepared) -> None:
        """Raises `Refused` where a message holds the text of a special token, which would become that token."""
        for i, message in enumerate(prepared.messages):
            # The tags around reasoning are the template's own words, special tokens or not.
            content = split_reasoning(message.get("content", "")) if message["role"] == "assistant" else ()
            self._refuse_special(prepared.place(i), strings({**message, "content": content or message.get("content")}))

    def _refuse_special(self, place: str, texts: Iterable[str]) -> None:
        for text in texts:
            if token := self._special.first_in(text):
                raise Refused(
                    f"{place}: its text holds {token!r}, which the tokenizer would read as its special token",
                    "Take the token out of the text: only the chat template may write it.",
                )

    def ending(self, text: str, start: int) -> tuple[int, list[tuple[int, int]]]:
        """Where the words of `text[start:]` end, and the terminators (start, end) among the white space after them."""
        at = len(text)
        found: list[tuple[int, int]] = []
        while at > start:
            at = start + len(text[start:at].rstrip())
            token = self._ends.before(text, at)
            if not token:
                break
            found.insert(0, (at - len(token), at))
            at -= len(token)
        return at, found

    def end_of_terminator(self, text: str, start: int) -> int | None:
        """The end of the terminator that stands at `start`."""
        token = self._ends.at(text, start)
        return start + len(token) if token else None


class _Tokens:
    """Strings to be found in texts, the longest first; some tokenizers have a thousand special tokens."""

    def __init__(self, tokens: set[str]) -> None:
        self.tokens = tokens
        self.lengths = sorted({len(token) for token in tokens}, reverse=True)
        begins = {re.escape(token[0]) for token in tokens}
        self.begin = re.compile(f"[{''.join(begins)}]" if begins else "(?!)")

    def at(self, text: str, start: int) -> str:
        """The token that begins at `start`, or `""`."""
        return next((text[start : start + n] for n in self.lengths if text[start : start + n] in self.tokens), "")

    def before(self, text: str, end: int) -> str:
        """The token that ends at `end`, or `""`."""
        return next((text[end - n : end] for n in self.lengths if n <= end and text[end - n : end] in self.tokens), "")

    def first_in(self, text: str) -> str:
        """The first token in the text, or `""`."""
        found = (self.at(text, begin.start()) for begin in self.begin.finditer(text))
        return next((token for token in found if token), "")


def _clock(date: str) -> str:
    """`strftime_now` as it is on a day: a macro, for transformers hands no function over to a template."""
    day = datetime.fromisoformat(date)
    replacing = "".join(f" | replace({part!r}, {day.strftime(part)!r})" for part in DATE_PARTS)
    # What follows keeps a line break at the beginning of the template, which the end of a block would swallow.
    return f"{{% macro strftime_now(format) %}}{{{{ format{replacing} }}}}{{% endmacro %}}{{{{ '' }}}}"


@lru_cache
def _variables_of(template: str) -> frozenset[str]:
    """The variables that a template reads."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(GENERATION.sub("", template))))


def shared_length(a: str, b: str) -> int:
    """The length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # a[:low] == b[:low]
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def after_the_end(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> str:
    """What the chat template writes behind the token that ends an answer, such as a line feed; "" without a template.

    A model that reads whole conversations was trained with it, and one that writes answers stops before it.
    """
    if tokenizer.chat_template is None:
        return ""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = ChatTemplate(tokenizer, "the chat template").render(messages, None)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    last = max((i for i, token in enumerate(ids) if token in ends), default=len(ids) - 1)
    return str(tokenizer.decode(ids[last + 1 :]))
