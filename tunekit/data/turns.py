"""The turns of a conversation in the text that the tokenizer's chat template makes of it, by rendering prefixes.

    whole            user: Hi<|im_end|> assistant: Hello<|im_end|> user: Bye<|im_end|> ...
    head of turn i   user: Hi<|im_end|> assistant:                     messages[:i] and the generation prompt
    turn i alone     user: Hi<|im_end|> assistant: Hello<|im_end|>     messages[:i+1]

A turn is trained as the model has to write it when it is that turn's turn: what follows the head in the rendering that
ends with it. Where the whole says the same there, the turns of a conversation share its one row. Where the template
renders a turn differently once it is history (it strips the reasoning, or another token ends the turn), the turn gets
a row of its own, or under `reasoning: template` is trained as the whole has it.
"""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunekit.data.chat import Chat, Part, Turn
from tunekit.data.kept import OTHER_TEMPLATE, check_answer, check_given, parts_said_twice
from tunekit.data.messages import OPEN, Message, has_reasoning, without_reasoning
from tunekit.data.notes import OTHER_HISTORY, OWN_ROWS
from tunekit.data.rows import Refused
from tunekit.data.template import ChatTemplate, shared_length


def find_parts(chat: Chat, template: ChatTemplate) -> list[Part]:
    """The rows to train on: those of turns that need one of their own, then the whole. Raises `Refused`."""
    messages, whole = template.render_either_form(chat.messages, chat.tools)
    chat = replace(chat, prepared=replace(chat.prepared, messages=messages))
    check_given(chat.prepared, whole, template.left_out(messages, chat.tools))
    finder = _Finder(chat, template, whole)
    if chat.loss_on == "all":
        return [finder.part_for_all()]
    shared: list[Turn] = []
    own: list[Part] = []
    for i in chat.needed:
        alone = finder.alone(i)
        turn = finder.turn_that_stays(alone)
        if alone.asked != alone.head and chat.reasoning == "template":
            chat.prepared.notes.append(OTHER_HISTORY)
        elif alone.asked != alone.head:
            turn = None
        if turn is None and chat.reasoning == "template":
            turn = finder.rewritten_turn(alone)
            finder.check_answer(i, len(messages), whole, turn.start, turn.end)
        else:
            finder.check_head(alone)
            finder.check_answer(i, i + 1, alone.text, len(alone.head), len(alone.text))
        if turn is not None:
            shared.append(turn)
        else:
            chat.prepared.notes.append(OWN_ROWS)
            own.append(finder.part_alone(alone))
    if own and not shared:
        return own
    return [*own, Part(chat, len(chat.messages), whole, shared, chat.source)]


@dataclass(frozen=True)
class _Alone:
    """A turn in the rendering `text` that ends with it: after `head`, up to `words`; then follow `terminators`.

    `asked` is the rendering that asks for it. It is the head too, but where the answer makes the template strip the
    reasoning before it (gpt-oss: that of the calls which led to the answer).
    """

    index: int
    asked: str
    head: str
    text: str
    words: int
    terminators: list[tuple[int, int]]

    def last_end(self, limit: int) -> int | None:
        """The end of the last terminator that lies before the character `limit`."""
        return max((end for _, end in self.terminators if end <= limit), default=None)


@dataclass(frozen=True)
class _Finder:
    """Finds the turns of one chat, whose rendering is `whole`."""

    chat: Chat
    template: ChatTemplate
    whole: str

    def alone(self, i: int) -> _Alone:
        before, through = self.chat.messages[:i], self.chat.messages[: i + 1]
        asked = head = self._ask(before)
        text = self.whole if len(through) == len(self.chat.messages) else self._render(through)
        if not text.startswith(asked) and any(map(has_reasoning, before)):
            stripped = self._ask([without_reasoning(message) for message in before])
            head = stripped if text.startswith(stripped) else asked
        return _Alone(i, asked, head, text, *self.template.ending(text, len(head)))

    def _render(self, messages: Sequence[Message]) -> str:
        return self.template.render(list(messages), self.chat.tools)

    def _ask(self, messages: Sequence[Message]) -> str:
        return self.template.render(list(messages), self.chat.tools, add_generation_prompt=True)

    def part_alone(self, alone: _Alone) -> Part:
        """The row of its own of a turn: as it is asked for, and as it is answered when nothing follows."""
        turn = self.turn_alone(alone)
        shift = len(alone.asked) - len(alone.head)
        text = alone.asked + alone.text[len(alone.head) :]
        source = f"{self.chat.source} (message {self.chat.prepared.numbers[alone.index]})"
        moved = Turn(alone.index, turn.start + shift, turn.end + shift)
        return Part(self.chat, alone.index + 1, text, [moved], source, joined=alone.asked != alone.head)

    def turn_alone(self, alone: _Alone) -> Turn:
        """The turn in the rendering that ends with it."""
        limit = len(alone.text)
        spans = alone.terminators
        if any(before[1] < after[0] for before, after in itertools.pairwise(spans)):
            # After white space a terminator may end the document and not the turn (Phi-3): the turn's are those that
            # stay when the conversation goes on.
            through = self.chat.messages[: alone.index + 1]
            with contextlib.suppress(Refused):
                limit = shared_length(alone.text, self._render([*through, {"role": "user", "content": "?"}]))
        end = alone.last_end(limit) or alone.last_end(len(alone.text)) or alone.words
        return Turn(alone.index, len(alone.head), end)

    def turn_that_stays(self, alone: _Alone) -> Turn | None:
        """The turn in the whole, if it is there as it is alone, its terminator included."""
        if not (self.whole.startswith(alone.head) and alone.text.startswith(alone.head)):
            return None
        shared = shared_length(alone.text, self.whole)
        if shared == len(alone.text) == len(self.whole) or (shared >= alone.words and not alone.terminators):
            return self.turn_alone(alone)
        end = alone.last_end(shared)
        return Turn(alone.index, len(alone.head), end) if end else None

    def part_for_all(self) -> Part:
        """The whole, with the turns that are not to be trained."""
        count = len(self.chat.messages)
        for i, message in enumerate(self.chat.messages):
            if message["role"] == "assistant":
                self.check_answer(i, count, self.whole, 0, len(self.whole))
        found = [self.alone(i) for i in self.chat.needed]
        turns = [self.turn_that_stays(alone) or self.rewritten_turn(alone) for alone in found]
        return Part(self.chat, count, self.whole, turns, self.chat.source)

    def rewritten_turn(self, alone: _Alone) -> Turn:
        """A turn as the whole has it, from its head to its terminator. Raises `Refused` where these cannot be told."""
        self.check_head(alone)
        if not alone.terminators:
            raise no_terminator(self.chat.prepared.place(alone.index), alone.text[len(alone.head) :])
        end = self._rewritten_end(alone) if self.whole.startswith(alone.head) else None
        if end is not None and end <= self._begin_of_next(alone.index):
            return Turn(alone.index, len(alone.head), end)
        fix = f"S{OTHER_TEMPLATE[1:]} renders a turn alike whatever follows it"
        if self.chat.loss_on == "all":
            fix += ", or data.loss_on: assistant"
        else:
            fix += ", or data.reasoning: keep, which trains such a turn in a row of its own"
        raise Refused(self._differing(alone, self.whole), f"{fix}.")

    def _rewritten_end(self, alone: _Alone) -> int | None:
        """Where the turn ends in the whole, which does not have it as it is alone."""
        # Either only its reasoning is gone, if anything, and another token ends it (gpt-oss) ...
        for text in (alone.text, self._without_reasoning(alone)):
            words, terminators = self.template.ending(text, len(alone.head))
            at = terminators[0][0] if terminators else words
            if text.startswith(alone.head) and shared_length(text, self.whole) >= at:
                return self.template.end_of_terminator(self.whole, at)
        # ... or it ends with the token that ends it alone: the first there is, for no content holds a special token.
        terminator = alone.text[slice(*alone.terminators[-1])]
        at = self.whole.find(terminator, len(alone.head))
        return at + len(terminator) if at >= 0 else None

    def _without_reasoning(self, alone: _Alone) -> str:
        message = self.chat.messages[alone.index]
        if not has_reasoning(message):
            return alone.text
        return self._render([*self.chat.messages[: alone.index], without_reasoning(message)])

    def _begin_of_next(self, i: int) -> int:
        """The first character of the whole that depends on what the message after the turn says."""
        changed = list(self.chat.messages)
        content = changed[i + 1].get("content", "")
        changed[i + 1] = {**changed[i + 1], "content": ("y" if content.startswith("x") else "x") + content}
        return shared_length(self.whole, self._render(changed))

    def check_head(self, alone: _Alone) -> None:
        """Raises `Refused` where the template does not begin an answer with the words in which it asks for one."""
        if alone.text.startswith(alone.head):
            return
        fix = f"S{OTHER_TEMPLATE[1:]} begins an answer with the words in which it asks for one"
        if self._without_reasoning(alone).startswith(alone.head):
            fix += ", or data.reasoning: drop to take the reasoning out of the data"
        if alone.head.rstrip().endswith(OPEN):
            fix = self._open_tag(alone)
        raise Refused(self._differing(alone, alone.text), f"{fix}.")

    def _open_tag(self, alone: _Alone) -> str:
        """What helps where the template asks with an open tag, so that the model is to reason before it answers."""
        cause = f"The template asks for an answer with an open {OPEN}, which this answer is not rendered with. "
        reasoned = {**without_reasoning(self.chat.messages[alone.index]), "reasoning_content": "x"}
        fix = f"set data.chat_template: path.jinja, a copy of the template that asks without {OPEN}"
        with contextlib.suppress(Refused):
            if self._render([*self.chat.messages[: alone.index], reasoned]).startswith(alone.head):
                return f'{cause}Write the reasoning of the answer under "reasoning_content", or {fix}'
        return f"{cause}S{fix[1:]}"

    def check_answer(self, i: int, count: int, text: str, start: int, end: int) -> None:
        """Raises `Refused` where `text`, of the first `count` messages, leaves out in `[start, end)` what `i` says."""
        before, after = self.chat.messages[:i], self.chat.messages[i + 1 : count]
        left_out = []
        for part, without in parts_said_twice(self.chat.messages[i]):
            with contextlib.suppress(Refused):
                if self._render([*before, without, *after]) == text:
                    left_out.append(part)
        check_answer(self.chat.prepared, i, text[start:end], self.chat.reasoning, left_out)

    def _differing(self, alone: _Alone, rendered: str) -> str:
        at = shared_length(alone.head, rendered)
        near = slice(max(0, at - 30), at + 40)
        return (
            f"{self.chat.prepared.place(alone.index)}: the chat template renders the conversation up to this turn "
            f"differently when it asks for the turn and when the turn is there, from character {at}:\n"
            f"  asked: {alone.head[near]!r}\n  there: {rendered[near]!r}"
        )


def no_terminator(place: str, text: str) -> Refused:
    return Refused(
        f"{place}: the chat template ends the turn with {text[-30:]!r}, without a terminator (a special token): the "
        "model would not learn to stop",
        "Set data.chat_template: path.jinja, a template that writes eos_token after the answer.",
    )
