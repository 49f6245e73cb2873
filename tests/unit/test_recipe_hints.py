"""What is said of one mistake is not said again as another, and what a misspelt section holds is looked at too."""

import time
from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.load import load, load_text

GOOD = "model: m\ndata: d\noutput_dir: o\n"


def said(text: str) -> list[str]:
    """The messages, without the lines that they quote."""
    with pytest.raises(RecipeError) as caught:
        load_text(text, "r.yaml")
    return [line for line in str(caught.value).splitlines() if line.startswith(("r.yaml", "..."))]


@pytest.mark.parametrize("more", ["", "train: {seed: 1}\n", "data: {max_length: 5}\n", "model: {dtype: auto}\n"])
def test_a_misspelt_extends_hides_what_the_base_would_give(more: str) -> None:
    assert said(f"extend: base.yaml\n{more}") == ["r.yaml:1:1: extend: unknown key; did you mean extends?"]
    assert len(said(f"extend: base.yaml\n{more}train2: {{}}\n")) == 2, "and nothing else"


def test_what_a_list_lacks_no_base_gives() -> None:
    assert "r.yaml:2:16: data.train.0.path: is missing" in said("extend: b.yaml\ndata: {train: [{name: x}]}\n")[1]


def test_the_keys_of_a_misspelt_section_are_checked_as_those_of_the_one_meant() -> None:
    assert said(GOOD + "trian:\n  sede: 1\n  seed: x\n  warmup_steps: 1\n  warmup_ratio: 0.1\n") == [
        "r.yaml:4:1: trian: unknown key; did you mean train?",
        "r.yaml:5:3: train.sede: unknown key; did you mean train.seed?",
        'r.yaml:6:9: train.seed: "x", must be a whole number',
        "r.yaml:8:17: train.warmup_ratio: excludes warmup_steps; remove one of the two",
    ]
    assert said("modle: {name_or_path: m, dtyp: x}\ndata: d\noutput_dir: o\n") == [
        "r.yaml:1:1: modle: unknown key; did you mean model?",
        "r.yaml:1:26: model.dtyp: unknown key; did you mean model.dtype?",
    ]


def test_a_misspelt_section_beside_the_right_one_is_only_named() -> None:
    assert said(GOOD + "train: {seed: 1}\ntrian: {sede: 1}\n") == [
        "r.yaml:5:1: trian: unknown key; did you mean train?"
    ]


@pytest.mark.parametrize("count", [60, 9000])
def test_messages_beyond_those_shown_are_counted_however_many(count: int) -> None:
    started = time.perf_counter()
    lines = said(GOOD + "".join(f"zz{i}: 1\n" for i in range(count)))
    assert lines[-1] == f"... and {count - 50} more" and len(lines) == 51
    assert time.perf_counter() - started < 5


def test_an_override_is_named_and_not_the_file_that_it_goes_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD + "train: {logging_steps: 3}\n")
    for override, message in (
        ("train.seed.x=3", "train.seed: a section, must be a whole number"),
        ("data.eval.0.columns.q.r=3", "data.eval.0.path: is missing"),
        ("freeze.layers.0.x=1", "freeze.layers.0: a section, must be a whole number"),
    ):
        with pytest.raises(RecipeError) as caught:
            load("r.yaml", [override])
        lines = str(caught.value).splitlines()
        assert any(line.startswith(f"override `{override}`: {message}") for line in lines)
        assert not any(line.startswith("r.yaml") for line in lines)
