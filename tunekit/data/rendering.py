"""How rows become tokens: what the token rows depend on beside the rows, the tokenizer and its template."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rendering:
    """The options of a rendering; all but `date` are keys of a recipe's `data` section.

    loss_on: `assistant` (every assistant turn), `last` (the last one), `completion` (the turns of a conversation that
        marks its prompt `"train": False`, else as `last`) or `all` (every token but the first). Assistant turns marked
        `"train": False` are trained under none of them. Of raw text the completion is trained, with an EOS, or `all`.
    system: goes before conversations without a system message (`system_mode: keep`) or in the place of theirs
        (`replace`), or none has one (`drop`).
    reasoning: `keep` gives a turn that the template renders differently once it is history a row of its own;
        `template` trains it as the whole conversation has it; `drop` takes the reasoning out of the data.
    date: the day, as ISO 8601, that a template which writes the date (`strftime_now`) is told; None: today.
    """

    loss_on: str = "assistant"
    system: str | None = None
    system_mode: str = "keep"
    reasoning: str = "keep"
    date: str | None = None


PLAIN = Rendering()
