"""What rendering changes, one sentence for each kind of change, counted on the way and said at the end."""

import logging
from collections import Counter
from collections.abc import Mapping

log = logging.getLogger("tunekit")

SYSTEM_REPLACED = "system messages replaced by data.system"
SYSTEM_DROPPED = "system messages taken out (data.system_mode: drop)"
REASONING_DROPPED = "turns whose reasoning was taken out (data.reasoning: drop)"
REASONING_LOST = "turns trained without their reasoning, which the chat template leaves out (data.reasoning: template)"
OWN_ROWS = "turns trained in rows of their own, since the chat template renders them differently later"
OTHER_HISTORY = (
    "turns trained after a history without the reasoning that they are asked with (data.reasoning: template)"
)
BEGINS_IN_PROMPT = (
    "answers whose first token begins in the prompt, so that it is not trained: the prompt that is asked is not quite "
    "the one that was trained"
)
BEGINS_IN_SPACE = (
    "answers whose first token begins in the white space at the end of the prompt and is trained with it: when the "
    "model is served, the prompt should not end in white space"
)
MANY_TOKENS = (
    "times as many tokens as the conversations have, since turns have rows of their own; data.reasoning: template "
    "trains a conversation in one row"
)
# The share of the rows above which a note is a warning.
WARN = {BEGINS_IN_PROMPT: 0.01, BEGINS_IN_SPACE: 0.01, MANY_TOKENS: 0.0}
GROWTH = 3  # more than this is noted


def note_growth(notes: Counter[str], tokens: int, longest: int) -> None:
    """Notes how often the tokens of the conversations come, where that is often: `longest` has one row of each."""
    if tokens > GROWTH * longest:
        notes[MANY_TOKENS] = round(tokens / longest)


def say_notes(source: str, notes: Mapping[str, int], num_rows: int) -> None:
    for note, count in notes.items():
        level = logging.WARNING if note in WARN and count > WARN[note] * num_rows else logging.INFO
        log.log(level, "%s: %s %s", source, f"{count:,}", note)
