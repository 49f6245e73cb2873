"""Files that are no recipe: each is refused with exit code 2, its place, and a message that a user can act on."""

import time
from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.load import load
from tunekit.recipe.parse import scalar
from tunekit.recipe.read import MAX_BYTES

GOOD = "model: m\ndata: d\noutput_dir: o\n"

MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", ": is empty"),
    "comment": ("# nothing\n", ": is empty"),
    "document": ("---\n", ":2:1: is empty"),
    "list": ("- model: m\n", ":1:1: does not hold keys with values"),
    "word": ("model\n", ":1:1: does not hold keys with values"),
    "tab": ("model: m\ntrain:\n\tseed: 1\n", ":3:1: a tab between or before keys"),
    "open list": (GOOD + "report_to: [wandb\n", "not valid YAML"),
    "open quote": (GOOD + "run_name: 'x\n", "not valid YAML"),
    "colon": (
        GOOD + "run_name: a: b\n",
        ':4:12: not valid YAML: ": " in a value\n    4 | run_name: a: b\n      |            ^\nPut',
    ),
    "indent": ("model: m\n  data: d\n", "not valid YAML"),
    "duplicate": (GOOD + "model: x\n", ":4:1: model: is given twice, first in line 1"),
    "inner duplicate": (GOOD + "train:\n  seed: 1\n  seed: 1\n", ":6:3: train.seed: is given twice, first in line 5"),
    "python tag": (
        "model: !!python/object/apply:os.system [id]\n",
        ":1:8: model: a tag (!!python/object/apply:os.system)",
    ),
    "int tag": (GOOD + "train: {seed: !!int '3'}\n", ":4:15: train.seed: a tag (!!int)"),
    "own tag": (GOOD + "run_name: !env HOME\n", ":4:11: run_name: a tag (!env)"),
    "key tag": ("!!str " + GOOD, ":1:1: model: a tag (!!str)"),
    "tagged section": (GOOD + "train: !!map {seed: 1}\n", ":4:8: train: a tag (!!map)"),
    "anchor": ("model: &m m\ndata: d\noutput_dir: o\n", ":1:8: model: an anchor (&m)"),
    "alias": (GOOD + "run_name: &a x\nresume: *a\n", ":5:9: resume: an alias (*a)"),
    "undefined alias": (GOOD + "resume: *nobody\n", "an alias (*nobody)"),
    "merge": (GOOD + "<<: {resume: auto}\n", ":4:1: <<: a merge key is not accepted; write the value out, or share it"),
    "merge of an alias": (GOOD + "train: {<<: *base}\n", ":4:9: train.<<: a merge key is not accepted"),
    "directive": ("%YAML 1.1\n---\n" + GOOD, ":2:1: a directive"),
    "tag directive": ("%TAG ! tag:x,2000:\n---\n" + GOOD, ":2:1: a directive"),
    "two documents": (GOOD + "---\n" + GOOD, ":4:1: a second document"),
    "complex key": ("? [model]\n: m\n", ":1:3: a key must be one word"),
    "list key": ("[a, b]: m\n", ":1:1: a key must be one word"),
    "line break in key": ('"mo\\ndel": m\n', ":1:1: a key must be one word"),
    "control": (GOOD + "run_name: a\x07b\n", ":4:12: the character U+0007"),
    "nul": ("model: \0", ":1:8: the character U+0000"),
    "surrogate": (GOOD + 'run_name: "\\ud83d"\n', ":4:11: half a character"),
    "utf-16": (GOOD.encode("utf-16"), ":1:1: is not UTF-8"),
    "latin-1": ("model: m\nrun_name: né\n".encode("latin-1"), ":2:12: is not UTF-8"),
    "binary": (bytes(range(256)), "r.yaml:"),
    "too large": (GOOD + "#" * MAX_BYTES, ": is larger than 256 KiB"),
    "deep list": ("model: " + "[" * 100_000, ":1:40: nested more than 32 levels deep"),
    "deep mapping": ("{a: " * 20_000, "nested more than 32 levels deep"),
    "deep sequence": ("- " * 20_000, "nested more than 32 levels deep"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_recipe_is_refused_at_its_place(tmp_path: Path, name: str) -> None:
    content, message = MALFORMED[name]
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert time.perf_counter() - started < 5


def test_multiplied_aliases_stay_small(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="an alias"):
        load(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "content", ["\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), "---\n" + GOOD + "...\n", GOOD + "# é\n"]
)
def test_harmless_differences_load(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content.encode())
    resolved = load(tmp_path / "r.yaml")
    assert (resolved.recipe.model.name_or_path, resolved.recipe.output_dir) == ("m", "o")


@pytest.mark.parametrize("path", ["", ".", "missing/r.yaml", "r.yaml/x", "a\0b", "x" * 300])
def test_paths_that_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD)
    with pytest.raises(RecipeError):
        load(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1", 1), ("-0", 0), ("010", 10), ("0o10", 8), ("0xFF", 255), ("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5)),
        *(("+1E3", 1000.0), ("-.inf", float("-inf")), ("", None), ("~", None), ("Null", None), ("TRUE", True)),
        *((word, word) for word in ("yes", "no", "on", "off", "none", "y", "1_000", "0b1", "1:30", "2024-01-01", "e5")),
        *((word, word) for word in (".", "-", "+", "1e", "nan", "inf", "\u0661", "9" * 401, "<<", "=", "tRue")),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert scalar(text) == value and type(scalar(text)) is type(value)
