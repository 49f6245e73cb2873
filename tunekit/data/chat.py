"""A conversation as the template gets it, and what it becomes: renderings, and the turns in them."""

from dataclasses import dataclass

from tunekit.data.messages import Message, Prepared, prepare_messages
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation
from tunekit.data.template import ChatTemplate, Tools


@dataclass(frozen=True)
class Chat:
    """A conversation as the template gets it, and the assistant messages whose spans are `needed`."""

    prepared: Prepared
    tools: Tools | None
    needed: list[int]
    loss_on: str
    reasoning: str
    source: str

    @property
    def messages(self) -> list[Message]:
        return self.prepared.messages


@dataclass(frozen=True)
class Turn:
    """The characters `[start, end)` that the model writes as the message `index`, its terminator included."""

    index: int
    start: int
    end: int


@dataclass(frozen=True)
class Part:
    """A rendering that becomes one row of tokens: the `text` of the first `count` messages, and turns in it.

    `joined`: the text is no rendering by itself, but that of a question and the turn from that of its answer.
    """

    chat: Chat
    count: int
    text: str
    turns: list[Turn]
    source: str
    joined: bool = False

    @property
    def messages(self) -> list[Message]:
        return self.chat.messages[: self.count]


def read_chat(row: Conversation, template: ChatTemplate, rendering: Rendering) -> Chat:
    """The conversation as the template gets it, and the turns to find for `loss_on`. Raises `Refused`.

    These are the turns to train, and for `all` those that are not to be trained.
    """
    prepared = prepare_messages(row.messages, rendering)
    template.refuse_special_tokens(prepared)
    loss_on = rendering.loss_on
    turns = [i for i, message in enumerate(prepared.messages) if message["role"] == "assistant"]
    needed = [i for i in turns if row.messages[prepared.numbers[i]].get("train", True)]
    if loss_on == "all":
        needed = [i for i in turns if i not in needed]
    elif loss_on == "last" or (loss_on == "completion" and all(m.get("train", True) for m in row.messages)):
        needed = [i for i in needed if i == turns[-1]]
    return Chat(prepared, template.parse_tools(row.tools), needed, loss_on, rendering.reasoning, row.source)
