"""Every key of every recipe with one slip of the finger: refused at its line, and the key that was meant is named.

"Named" is: the message asks `did you mean ...?` with the key that was meant, or with two that are as near. Two more
things may be so. A slip can make a key of another section (`dtype` cut is `type`): the message says where that belongs,
and asks as well. Of a key of one or two letters a slip leaves too little to compare: the message lists all keys of the
section. A slip that makes another key of the same section would be no unknown key; there is none today, which a test
says too.
"""

import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.foreign import FOREIGN
from tunekit.recipe.hints import SECTIONS, keys_of
from tunekit.recipe.load import load, load_text
from tunekit.recipe.show import lines

ROOT = Path(__file__).parents[2]
SHIPPED = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.stem != "rlhf"]  # which is a pipeline
# Every key is in it, whatever the values.
FULL = """\
model: m
adapter: none
freeze: {layers: 0-3}
data:
  train: [{path: a, columns: {prompt: q}}, {path: b}]
  eval: [c]
output_dir: o
"""


def slips(key: str) -> set[str]:
    """The key with one letter left out, doubled or replaced, or two swapped."""
    places = range(len(key))
    dropped = {key[:i] + key[i + 1 :] for i in places}
    doubled = {key[: i + 1] + key[i:] for i in places}
    swapped = {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in places[:-1]}
    # The letter beside it in the alphabet: as far from the right one as any other.
    following = dict(zip(string.ascii_lowercase, string.ascii_lowercase[1:] + "a", strict=True))
    replaced = {key[:i] + following.get(key[i], "x") + key[i + 1 :] for i in places}
    return (dropped | doubled | swapped | replaced) - {key, ""}


def mutants(text: str) -> Iterator[tuple[str, int, str, str]]:
    """(text with one slip, number of its line, what was meant, what is there) for each key of a block-style text."""
    all_lines = text.splitlines()
    for index, line in enumerate(all_lines):
        match = re.match(r"([ -]*)(\w+):", line)
        if match is None or all_lines[index - 1].strip() == "columns:":
            continue  # the keys of a mapping are the user's own
        for slip in sorted(slips(match[2])):
            changed = [*all_lines[:index], f"{match[1]}{slip}{line[match.end(2) :]}", *all_lines[index + 1 :]]
            yield "\n".join(changed), index + 1, match[2], slip


def named(message: str, meant: str) -> bool:
    if re.search(rf"did you mean ([\w.]+ or )?([\w.]+\.)?{meant}( or [\w.]+)?\?", message):
        return True
    keys = message.rpartition("has the keys ")[2].split(", ")
    return len(meant) <= 2 and meant in keys


def check(text: str, number: int, meant: str, slip: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_text(text, "r.yaml")
    said = [line for line in str(caught.value).splitlines() if line.startswith("r.yaml:")]
    assert len(said) == 1, said
    assert said[0].startswith(f"r.yaml:{number}:") and "unknown key" in said[0]
    assert named(said[0], meant), f"{meant} as {slip}: {said[0]}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_slip_in_a_shipped_recipe_is_found(path: Path) -> None:
    count = 0
    for text, number, meant, slip in mutants(path.read_text()):
        check(text, number, meant, slip)
        count += 1
    assert count > 100


def test_every_slip_in_a_key_of_a_recipe_that_sets_all_is_found() -> None:
    recipe = load_text(FULL, "r.yaml").recipe
    written = [(text, path.partition(".")[0]) for text, path in with_sections(recipe.model_dump(mode="json"))]
    seen: set[str] = set()
    for section in recipe.model_dump():
        # One section at a time in full: the parser takes most of the time.
        short = [line for line in ("model: m", "data: d", "output_dir: o") if not line.startswith(f"{section}:")]
        block = [text for text, owner in written if owner == section]
        for text, number, meant, slip in mutants("\n".join(block + short)):
            if number <= len(block):
                check(text, number, meant, slip)
                seen.add(meant)
    # Rewards are of stages that this is none of; the shipped recipes have them.
    expected = {key for name in SECTIONS if name != "rewards" for key in keys_of(name)}
    assert seen == expected - {"extends", "reward_model"}


def with_sections(values: dict) -> Iterator[tuple[str, str]]:  # type: ignore[type-arg]
    """The lines of a recipe, each with the section that it is in."""
    section = ""
    for text, path in lines(values):
        if not text.startswith(" "):
            section = text.partition(":")[0]
        yield text, path or section


def test_no_slip_makes_another_key_of_the_same_section_or_a_name_of_another_tool() -> None:
    for section in SECTIONS:
        for key in keys_of(section):
            assert not slips(key) & (set(keys_of(section)) | FOREIGN.keys())


@pytest.mark.parametrize("key", ["extends"])
def test_a_slip_in_extends_is_found(tmp_path: Path, key: str) -> None:
    (tmp_path / "base.yaml").write_text("model: m\ndata: d\noutput_dir: o\n")
    for slip in slips(key):
        (tmp_path / "r.yaml").write_text(f"{slip}: base.yaml\nmodel: m\ndata: d\noutput_dir: o\n")
        with pytest.raises(RecipeError, match=r"r.yaml:1:1: \w+: unknown key; did you mean extends\?"):
            load(tmp_path / "r.yaml")
