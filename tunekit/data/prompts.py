"""What a model is asked, and what the data answers: the rows of text generation and its metrics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tunekit.data.rows import Conversation, Text


@dataclass(frozen=True, slots=True)
class Prompt:
    """`prompt`: raw text, or the messages before the last answer;  `answer`: what the data says there."""

    prompt: str | tuple[dict[str, Any], ...]
    answer: str

    @property
    def last_turn(self) -> str:
        """What a person would show of the prompt."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


def prompts_of(rows: Iterable[Conversation | Text], system: str | None = None) -> list[Prompt]:
    """The prompt and answer of each row that has both; `text` rows, trained whole, have no prompt and are left out."""
    prompts = []
    for row in rows:
        if isinstance(row, Text):
            if row.prompt:
                prompts.append(Prompt(row.prompt, row.completion))
            continue
        answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
        last = answers[-1]
        if last > 0 and isinstance(row.messages[last]["content"], str):
            before = row.messages[:last]
            if system is not None and before[0]["role"] != "system":
                before = ({"role": "system", "content": system}, *before)
            prompts.append(Prompt(before, row.messages[last]["content"]))
    return prompts
