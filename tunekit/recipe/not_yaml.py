"""What to say of text that is not YAML at all: where the slip is, which is seldom where the parser gives up."""

from __future__ import annotations

import re
from typing import NamedTuple

from ruamel.yaml.error import MarkedYAMLError

from tunekit.recipe.excerpt import Spot, split_lines

QUOTES = 'Put a value that holds ": " in quotes.'
CANNOT_BEGIN = re.compile(r"found character '([^\\])' that cannot start any token")
ODD_BEGINNING = (
    "sequence entries are not allowed",
    "mapping keys are not allowed",
    "expected a comment or a line break",
)
KEY = re.compile(r"\s*(- +)*[^\s#].*?:(\s|$)")


class Slip(NamedTuple):
    spot: Spot
    message: str
    fix: str = ""


def find_slip(error: MarkedYAMLError, text: str, source: str) -> Slip:
    """Where `text` stops being YAML, what is wrong there, and what to do."""
    mark, what = error.problem_mark or error.context_mark, str(error.problem or error.context)
    spot = Spot(source, mark.line + 1, mark.column + 1) if mark else Spot(source)
    begin = Spot(source, error.context_mark.line + 1, error.context_mark.column + 1) if error.context_mark else spot
    if "'\\t'" in what:
        return Slip(spot, "a tab between or before keys", "YAML is laid out with spaces; replace the tab.")
    if "stream end" in what or "end of stream" in what:
        return Slip(begin, "not valid YAML: what begins here has no end")
    if "could not find expected ':'" in what:
        return Slip(begin, "not valid YAML: a key without a colon behind it", "Write key: value.")
    if found := CANNOT_BEGIN.search(what):
        return Slip(spot, f"not valid YAML: a value cannot begin with {found[1]}", "Put the value in quotes.")
    if "expected alphabetic or numeric character" in what:
        return Slip(begin, "not valid YAML: a value cannot begin with * or &", "Put the value in quotes.")
    if any(words in what for words in ODD_BEGINNING):
        return Slip(spot, "not valid YAML: a value cannot begin with -, ?, | or >", "Put the value in quotes.")
    if what.startswith("expected ',' or ") and what.endswith("got ':'"):
        if begin.line == spot.line:
            return Slip(spot, 'not valid YAML: ": " in a value', QUOTES)
        return Slip(begin, "not valid YAML: what begins here has no end", f"Close it. {QUOTES}")
    if what == "expected <block end>, but found '<scalar>'":
        return Slip(spot, "not valid YAML: text behind the end of a value", "Put all of the value in quotes.")
    if "mapping values are not allowed" in what:
        return _second_colon(spot, split_lines(text))
    if what.startswith("expected <block end>, but found '<block"):
        return Slip(spot, "not valid YAML: the indentation of this line is that of none above", "Align it.")
    return Slip(spot, f"not valid YAML: {what}")


def _second_colon(spot: Spot, lines: list[str]) -> Slip:
    """A colon behind what the parser takes for a value: in one line, or in a line that goes on with the one above."""
    line = lines[spot.line - 1]
    if KEY.match(line[: spot.column - 1]):
        return Slip(spot, 'not valid YAML: ": " in a value', QUOTES)
    above = next((n for n in range(spot.line - 1, 0, -1) if lines[n - 1].split("#")[0].strip()), 0)
    indent, other = _indent(line), _indent(lines[above - 1]) if above else 0
    if above and indent > other:
        message = f"not valid YAML: indented by {indent}, below a line that is indented by {other} and has its value"
        return Slip(Spot(spot.source, spot.line, indent + 1), message, "Align the keys of a section.")
    message = 'not valid YAML: a line without ": " between key and value'
    return Slip(Spot(spot.source, above or spot.line, other + 1), message, "Write key: value, with a space.")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
