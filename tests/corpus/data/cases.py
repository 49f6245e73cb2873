"""Malformed data files as data: what is in a file, which of its rows are rejected where and why, how many load.

Every fault is put into a file of good rows of every shape, so that a case fails where a row is lost with a bad one.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

USER = {"role": "user", "content": "Ask"}
ASSISTANT = {"role": "assistant", "content": "Answer"}
HH = "\n\nHuman: Ask\n\nAssistant:"
LEFT_OUT = object()


@dataclass(frozen=True)
class Case:
    """`rejected`: the places after the name of the file, each with words of its reason (a regular expression).

    `error`: words of the error that ends the reading, after the `good` rows; -1: after some of them.
    """

    name: str
    file: str
    content: Callable[[], bytes]
    good: int
    rejected: dict[str, str] = field(default_factory=dict)
    error: str = ""
    exit_code: int = 3
    where: dict[str, Any] = field(default_factory=dict)


def _left_out(value: Any) -> Any:
    """`value` without what is `LEFT_OUT`, at any depth."""
    if isinstance(value, dict):
        return {key: _left_out(inner) for key, inner in value.items() if inner is not LEFT_OUT}
    return [_left_out(inner) for inner in value] if isinstance(value, list) else value


# A row of each shape around one text of it.
SHAPES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "messages": lambda text: {"messages": [USER, {"role": "assistant", "content": text}]},
    "text": lambda text: {"text": text},
    "prompt_completion": lambda text: {"prompt": "Ask", "completion": text},
    "alpaca": lambda text: {"instruction": "Ask", "output": text},
    "sharegpt": lambda text: {"conversations": [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": text}]},
    "preference": lambda text: {"prompt": "Ask", "chosen": text, "rejected": "Worse"},
    "unpaired": lambda text: {"prompt": "Ask", "completion": text, "label": True},
    "prompt": lambda text: {"prompt": text},
}

# What may be wrong with a line of JSON, wherever it comes from, and the words of the reason.
LINES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a NUL byte": (lambda line: line.replace(b"word", b"wo\0rd"), "byte .* is NUL"),
    "a byte that is not UTF-8": (lambda line: line.replace(b"word", b"w\xffrd"), "0xff.* is not UTF-8"),
    "latin-1": (lambda line: line.replace(b"word", "wörd".encode("latin-1")), "0xf6.* is not UTF-8"),
    "half of a surrogate pair": (lambda line: line.replace(b"word", b"\\ud83d"), "surrogate"),
    "the literal NaN": (lambda line: b'{"x": NaN, ' + line[1:], "literal NaN"),
    "the literal -Infinity": (lambda line: b'{"x": [-Infinity], ' + line[1:], "literal -Infinity"),
    "a key twice": (lambda line: b'{"k": 1, "k": 2, ' + line[1:], "'k' stands twice"),
    "an array": (lambda line: b"[" + line + b"]", "expected an object"),
    "a string": (lambda line: b'"word"', "expected an object .* found 'word'"),
    "no closing brace": (lambda line: line[:-1], "not JSON at column"),
    "single quotes": (lambda line: str(json.loads(line)).encode(), "not JSON at column 2"),
    "two objects on a line": (lambda line: line + line, "Extra data"),
    "a tab inside a string": (lambda line: line.replace(b"word", b"wo\trd"), "Invalid control character"),
    "brackets without end": (lambda line: b'{"x": ' + b"[" * 100_000, "nested too deeply"),
    "a number of 5,000 digits": (lambda line: b'{"x": ' + b"7" * 5000 + b", " + line[1:], "4300 digits"),
}

# What may stand where a text belongs.
VALUES: dict[str, tuple[Any, str]] = {
    "a number for a text": (5, "found .*5"),
    "an object for a text": ({"a": 1}, "'a': 1|role is None|a message"),
    "null for a text": (None, "null|None"),
    "an empty text": ("", "empty"),
    "a blank text": (" \n\t", "empty"),
    "no text": (LEFT_OUT, "missing|None|no value"),
}

# Rows that are wrong in a way of their own shape.
ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("messages", "no role", {"messages": [USER, {"content": "x"}]}, "there is no role"),
    ("messages", "an unknown role", {"messages": [USER, {"role": "boss", "content": "x"}]}, "'boss'.*accepted"),
    ("messages", "two systems", {"messages": [{**USER, "role": "system"}] * 2 + [USER, ASSISTANT]}, "only come first"),
    ("messages", "assistant first", {"messages": [ASSISTANT, USER, ASSISTANT]}, "begin with a user"),
    ("messages", "no assistant", {"messages": [USER]}, "no assistant message"),
    ("messages", "two answers", {"messages": [USER, ASSISTANT, ASSISTANT]}, "1 and 2 are both assistant"),
    ("messages", "no messages", {"messages": []}, "empty"),
    ("messages", "a text for messages", {"messages": "Ask"}, "list of messages"),
    ("messages", "a tool without a call", {"messages": [USER, {"role": "tool", "content": "1"}]}, "assistant"),
    ("messages", "an image", {"messages": [{**USER, "content": [{"type": "image"}]}, ASSISTANT]}, "images"),
    ("messages", "train as text", {"messages": [USER, {**ASSISTANT, "train": "no"}]}, "true or false"),
    ("messages", "half a weight", {"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "weight must be 0 or 1"),
    ("messages", "another tool's mark", {"messages": [USER, {**ASSISTANT, "training": 1}]}, '"train": false'),
    ("messages", "tools as prose", {"messages": [USER, ASSISTANT], "tools": "f(x)"}, "tools is not JSON"),
    (
        "messages",
        "arguments that are no JSON",
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x=1"}]}]},
        "no JSON object",
    ),
    ("sharegpt", "an unknown speaker", {"conversations": [{"from": "alien", "value": "x"}]}, "'alien'.*accepted"),
    ("sharegpt", "assistant first", {"conversations": [{"from": "gpt", "value": "x"}]}, "begin with a user"),
    (
        "sharegpt",
        "a system twice",
        {"conversations": [{**USER, "role": "system"}, USER, ASSISTANT], "system": "x"},
        "first",
    ),
    ("alpaca", "no question", {"instruction": "", "output": "x"}, "instruction is empty"),
    ("alpaca", "a list for the input", {"instruction": "x", "input": ["y"], "output": "z"}, "input must be a string"),
    ("alpaca", "half an exchange", {"instruction": "x", "output": "y", "history": [["x"]]}, "history"),
    ("prompt_completion", "one of each", {"prompt": "x", "completion": [ASSISTANT]}, "both strings or both"),
    ("prompt_completion", "no answer", {"prompt": [USER], "completion": [USER]}, "no assistant message"),
    ("prompt_completion", "tools beside text", {"prompt": "x", "completion": "y", "tools": "[1]"}, "needs messages"),
    ("preference", "equal answers", {"prompt": "x", "chosen": "y", "rejected": "y"}, "are equal"),
    ("preference", "one of each", {"prompt": "x", "chosen": "y", "rejected": [ASSISTANT]}, "not one of each"),
    ("preference", "an empty rejected", {"prompt": "x", "chosen": "y", "rejected": ""}, "rejected is empty"),
    (
        "preference",
        "no shared prompt",
        {"chosen": [ASSISTANT], "rejected": [{**ASSISTANT, "content": "x"}]},
        "share no",
    ),
    (
        "preference",
        "a margin as text",
        {"prompt": "x", "chosen": "y", "rejected": "z", "margin": "2"},
        "margin must be",
    ),
    ("hh_rlhf", "equal answers", {"chosen": HH + " a", "rejected": HH + " a"}, "are equal"),
    ("hh_rlhf", "an empty answer", {"chosen": HH + " a", "rejected": HH}, "turn 1 .Assistant. is empty"),
    (
        "hh_rlhf",
        "a question last",
        {"chosen": HH + " a\n\nHuman: b", "rejected": HH + " b"},
        "ends with a turn of Human",
    ),
    (
        "hh_rlhf",
        "other prompts",
        {"chosen": HH + " a", "rejected": "\n\nHuman: b\n\nAssistant: c"},
        "before their last",
    ),
    ("hh_rlhf", "no transcript", {"chosen": HH + " a", "rejected": "b"}, "must begin with"),
    (
        "unpaired",
        "a verdict as text",
        {"prompt": "x", "completion": "y", "label": "true"},
        "label must be true or false",
    ),
    (
        "unpaired",
        "a verdict as a number",
        {"prompt": "x", "completion": "y", "label": 1},
        "label must be true or false",
    ),
    ("unpaired", "no verdict", {"prompt": "x", "completion": "y", "label": None}, "label is null"),
    ("unpaired", "a question last", {"messages": [USER, ASSISTANT, USER], "label": True}, "the assistant"),
    ("prompt", "an answer last", {"prompt": [USER, ASSISTANT]}, "nothing to answer"),
    ("prompt", "no user", {"prompt": [{**USER, "role": "system"}]}, "no user message"),
    ("prompt", "an answer that is a number", {"prompt": "x", "answer": 4}, "answer must be a string"),
]


def _json(row: Any) -> bytes:
    return json.dumps(_left_out(row)).encode()


def _lines(*lines: bytes) -> Callable[[], bytes]:
    return lambda: b"\n".join(lines) + b"\n"


def _good(shape: str) -> bytes:
    return _json({"chosen": HH + " a", "rejected": HH + " b"} if shape == "hh_rlhf" else SHAPES[shape]("word"))


def _rows_with_faults() -> Iterator[Case]:
    for shape, row in SHAPES.items():
        good = _good(shape)
        for name, (spoil, reason) in LINES.items():
            yield _third_is_bad(f"{shape}: {name}", good, spoil(good), reason)
        for name, (value, reason) in VALUES.items():
            yield _third_is_bad(f"{shape}: {name}", good, _json(row(value)), reason)
        other = _json({"other": "word"})
        yield _third_is_bad(f"{shape}: a row of another kind", good, other, "missing; its keys are other")
        yield Case(
            f"{shape}: a row of another kind at 10,001",
            "rows.jsonl",
            _lines(*[good] * 10_000, other, good),
            10_001,
            {":10001": "missing"},
        )
    for shape, name, fault, reason in ROWS:
        yield _third_is_bad(f"{shape}: {name}", _good(shape), _json(fault), reason)


def _third_is_bad(name: str, good: bytes, bad: bytes, reason: str) -> Case:
    return Case(name, "rows.jsonl", _lines(good, good, bad, good), 3, {":3": reason})


def _files_with_faults() -> Iterator[Case]:
    for shape in SHAPES:
        good = _good(shape)
        lines, packed = [good, good, good], gzip.compress((good + b"\n") * 9999)
        array = b"[" + b",\n".join(lines) + b"]"
        long = good.replace(b"word", b"word " * 200_000)
        many: list[tuple[str, str, bytes, int, dict[str, str], str]] = [
            ("a byte order mark", "rows.jsonl", b"\xef\xbb\xbf" + b"\n".join(lines), 3, {}, ""),
            ("CRLF", "rows.jsonl", b"\r\n".join([*lines, b"{\r\n"]), 3, {":4": "not JSON"}, ""),
            ("blank lines", "rows.jsonl", b"\n \n".join([*lines, b"x", b""]), 3, {":7": "not JSON"}, ""),
            ("a line of 1 MB", "rows.jsonl", b"\n".join([*lines, long]), 4, {}, ""),
            ("a last line cut off", "rows.jsonl", b"\n".join(lines)[:-9], 2, {":3": "may be cut off"}, ""),
            ("no row", "rows.jsonl", b"", 0, {}, "empty"),
            ("blank lines only", "rows.jsonl", b"\n\r\n \n", 0, {}, "empty"),
            ("UTF-16", "rows.jsonl", b"\n".join(lines).decode().encode("utf-16"), 0, {}, "UTF-16"),
            ("gzip that is cut off", "rows.jsonl.gz", packed[:-100], -1, {}, "cut off after line"),
            ("gzip with a wrong end", "rows.jsonl.gz", packed[:-8] + b"x" * 8, 9999, {}, "CRC check failed"),
            ("no gzip", "rows.jsonl.gz", b"\n".join(lines), 0, {}, "Not a gzipped file"),
            ("gzip without .gz", "rows.jsonl", packed, 0, {}, r"let its name end in \.gz"),
            ("lines that are an array", "rows.jsonl", b"[\n" + array[1:-1] + b"\n]", 0, {}, r"end in \.json\."),
            ("an array that is cut off", "rows.json", array[:-9], 2, {}, r"rows\.json:3:\d+: not JSON"),
            (
                "an array with a bad row",
                "rows.json",
                b'[{"k": 1, "k": 2}, ' + array[1:],
                3,
                {"[0]": "'k' .* twice"},
                "",
            ),
            ("an array with more after it", "rows.json", array + b"]", 3, {}, "Extra data"),
            ("an array under a key", "rows.json", b'{"v": 1, "rows": ' + array + b"}", 0, {}, "field: rows"),
            ("no parquet", "rows.parquet", b"\n".join(lines), 0, {}, "as parquet"),
            ("an unknown kind", "rows.jsnl", b"\n".join(lines), 0, {}, r"did you mean \.jsonl"),
        ]
        for name, file, content, number, rejected, error in many:
            yield Case(f"{shape}: {name}", file, lambda content=content: content, number, rejected, error)
        key = {"field": "row"}
        wrapped = b'{"v": 1, "rows": ' + array + b"}"
        yield Case(
            f"{shape}: a key that is not there",
            "rows.json",
            lambda wrapped=wrapped: wrapped,
            0,
            error="no key row; did you mean rows",
            exit_code=2,
            where=key,
        )


def _tables_with_faults() -> Iterator[Case]:
    for shape in ("text", "prompt_completion", "alpaca", "preference", "prompt"):
        names = list(SHAPES[shape]("word"))
        header, good = ",".join(names).encode(), ",".join(SHAPES[shape]("word").values()).encode()
        many: list[tuple[str, list[bytes], int, dict[str, str], str]] = [
            ("a field too many", [header, good, good + b",x", good], 2, {":3": "the header has"}, ""),
            ("text after a quote", [header, good, b'"x"y', good], 2, {":3": "expected after"}, ""),
            ("a quote without end", [header, good, b'"' + good, good], 1, {":3": "never closed.*lines 3 to 4"}, ""),
            ("not UTF-8", [header, good, good.replace(b"word", b"w\xe4"), good], 2, {":3": "0xe4"}, ""),
            ("a NUL byte", [header, good, good.replace(b"word", b"\0"), good], 2, {":3": "NUL"}, ""),
            ("a column twice", [header + b"," + names[0].encode(), good], 0, {}, "column twice"),
            ("a header only", [header], 0, {}, "empty but for its header"),
        ]
        for name, lines, number, rejected, error in many:
            yield Case(f"{shape}: csv: {name}", "rows.csv", _lines(*lines), number, rejected, error)
        numbers = [{name: 5 for name in names}] * 2
        reasons = {"[0]": "5", "[1]": "5"}
        yield Case(f"{shape}: parquet of numbers", "rows.parquet", lambda n=numbers: _parquet(n), 0, reasons)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import datasets

    buffer = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(buffer)
    return buffer.getvalue()


CASES = [*_rows_with_faults(), *_files_with_faults(), *_tables_with_faults()]
