"""The line under a message: the right one, in one piece of terminal, the caret below what is meant."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunekit.errors import RecipeError
from tunekit.recipe.excerpt import MAX_WIDTH, Spot, excerpt, split_lines, spot_at
from tunekit.recipe.load import load

GOOD = "model: m\ndata: d\noutput_dir: o\n"


def said(folder: Path, text: str, *overrides: str) -> str:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(folder / "r.yaml", overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_each_message_stands_above_its_line_with_a_caret_below_the_column(tmp_path: Path) -> None:
    text = GOOD + "train:\n  lerning_rate: 5e-4\n  seed: x   # why not\n"
    assert said(tmp_path, text).splitlines() == [
        "r.yaml:5:3: train.lerning_rate: unknown key; did you mean train.learning_rate?",
        "    5 |   lerning_rate: 5e-4",
        "      |   ^",
        'r.yaml:6:9: train.seed: "x", must be a whole number',
        "    6 |   seed: x   # why not",
        "      |         ^",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "report_to: [wandb\n\n", "    4 | report_to: [wandb"),
        (GOOD + "run_name: 'x\n\n", "    4 | run_name: 'x"),
        (GOOD + "eval: &a {}\n", "    4 | eval: &a {}"),
        ("model: m\n---\ndata: d\n", "    2 | ---"),
        ("- a\n", "    1 | - a"),
        (GOOD + "train:\n\tseed: 1\n", "    5 | →seed: 1"),
        ("model: m\r\ndata: d\r\nseed: 1\r\n", "    3 | seed: 1"),
        ("model: m\rdata: d\rseed: 1\r", "    3 | seed: 1"),
        (GOOD + 'run_name: "a\u2028b\x85"\nseed: 1\n', "    5 | seed: 1"),
        (GOOD + "data: e\n", "    4 | data: e"),
    ],
)
def test_whatever_is_wrong_the_line_is_the_one_that_the_place_names(tmp_path: Path, text: str, line: str) -> None:
    lines = said(tmp_path, text).splitlines()
    assert line in lines
    number = line.split()[0]
    assert f"r.yaml:{number}:" in lines[lines.index(line) - 1]


def test_a_byte_that_is_no_utf_8_is_shown_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfmodel: m\nrun_name: n\xe9e\n")
    with pytest.raises(
        RecipeError, match=r"r.yaml:2:12: is not UTF-8 text\n    2 \| run_name: n.e\n      \|            \^"
    ):
        load(tmp_path / "r.yaml")


def test_overrides_have_no_line_to_show(tmp_path: Path) -> None:
    assert "|" not in said(tmp_path, GOOD, "train.seed=x")
    assert "|" not in said(tmp_path, GOOD, "train=[")


def test_no_more_than_fifty_messages_are_shown_and_the_rest_is_counted(tmp_path: Path) -> None:
    lines = said(tmp_path, GOOD + "".join(f"zz{i}: 1\n" for i in range(60))).splitlines()
    assert len(lines) == 151 and lines[-1] == "... and 10 more"


def width(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@given(
    line=st.text(st.characters(codec="utf-8"), max_size=400).filter(lambda t: len(split_lines(t)) == 1), data=st.data()
)
@example(line="数据: 训练", data=None)
@example(line="x" * 300, data=None)
def test_the_caret_is_below_the_character_meant_however_long_the_line(line: str, data: st.DataObject | None) -> None:
    column = data.draw(st.integers(1, len(line.rstrip()) + 1)) if data else len(line)
    _, shown, caret = excerpt(Spot("r.yaml", 1, column), [line]).split("\n")
    text, below = shown[8:], caret[8:]
    assert shown.startswith("    1 | ") and below.strip() == "^"
    assert len(text) <= MAX_WIDTH + 6 and text.isprintable()
    # Characters without width share a column with the next one.
    meant = {text[i] for i in range(len(text)) if width(text[:i]) == len(below) - 1}
    if column <= len(line.rstrip()):
        char = line[column - 1]
        assert (char if char.isprintable() else "→" if char == "\t" else "\ufffd") in meant


@given(st.text(st.sampled_from("a\n\r\u2028é"), max_size=30), st.data())
def test_a_place_in_a_text_is_counted_like_its_lines(text: str, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(text)))
    spot = spot_at(text, offset, "r.yaml")
    assert spot.line == len(split_lines(text[:offset]))
    assert spot.column == len(split_lines(text[:offset])[-1]) + 1


@pytest.mark.parametrize("spot", [Spot("r.yaml"), Spot("r.yaml", 2, 1)])
def test_where_there_is_no_line_nothing_is_shown(spot: Spot) -> None:
    assert excerpt(spot, ["model: m"]) == ""
