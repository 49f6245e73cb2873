"""What holds for any recipe and any text: printed, it loads again; and what is no recipe is refused at its place."""

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tunekit.errors import RecipeError
from tunekit.recipe.json_schema import json_schema
from tunekit.recipe.load import load, load_text
from tunekit.recipe.parse import MAX_DEPTH
from tunekit.recipe.show import as_dict, as_yaml, dump

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda t: not t.startswith("TODO")
)
WORD = st.text("abcxyz/._-", min_size=1, max_size=8).filter(lambda t: not t.startswith("TODO"))
COUNT = st.integers(1, 10**6)
POSITIVE = st.floats(1e-300, 10)
# A path is kept as it is written but for a `~` before it, and no environment variable stands in one.
PATH = TEXT.filter(lambda t: not t.startswith("~") and "$" not in t)
SCHEMA = Draft202012Validator(json_schema())
KEY = st.text(st.sampled_from(":#'\"{}[],&*!|>%@`-?~<= a1\\é"), min_size=1, max_size=4)


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A section with some of these keys."""
    return st.fixed_dictionaries({}, optional=keys)


SOURCE = st.fixed_dictionaries(
    {"path": WORD},
    optional={
        "format": st.sampled_from(["auto", "messages", "text", "alpaca"]),
        "columns": st.dictionaries(KEY, TEXT, min_size=1, max_size=3),
    },
)
RECIPE = st.fixed_dictionaries(
    {
        "model": PATH
        | st.fixed_dictionaries({"name_or_path": PATH}, optional={"revision": TEXT, "dtype": st.just("float32")}),
        "data": WORD
        | st.fixed_dictionaries(
            {"train": WORD | st.lists(WORD | SOURCE, min_size=1, max_size=3)},
            optional={
                "max_length": COUNT | st.none(),
                "overlong": st.sampled_from(["error", "drop", "truncate"]),
                "max_rejected": st.integers(0, 9) | st.floats(0.01, 0.99),
                "system": TEXT | st.none(),
                "packing": st.booleans(),
            },
        ),
        "output_dir": PATH,
    },
    optional={
        "adapter": st.sampled_from(["lora", "none"])
        | some(
            r=COUNT, alpha=POSITIVE, dropout=st.floats(0, 0.99), target_modules=TEXT | st.lists(TEXT, min_size=1)
        ).map(lambda section: {"type": "lora", **section}),
        "train": some(
            learning_rate=POSITIVE | st.none(),
            max_steps=COUNT | st.none(),
            seed=st.integers(0, 2**32 - 1),
            warmup_ratio=st.floats(0, 0.99),
            gradient_checkpointing=st.booleans(),
        ),
        "eval": some(steps=COUNT, metrics=st.lists(st.sampled_from(["exact_match", "token_f1"]), max_size=2)),
        "save": some(steps=COUNT, total_limit=COUNT),
        "run_name": TEXT | st.none(),
        "report_to": st.sampled_from(["wandb", "mlflow"]) | st.lists(st.sampled_from(["wandb", "trackio"]), max_size=2),
        "resume": st.sampled_from(["auto", "never", "step-3"]) | PATH.map(lambda t: f"{t}/"),
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPE)
def test_a_recipe_printed_and_loaded_again_is_equal_and_knows_where_each_value_is_from(raw: dict[str, Any]) -> None:
    text = json.dumps(raw, ensure_ascii=True)
    first = load_text(text, "r.yaml")
    printed = dump(first.recipe)
    again = load_text(printed, "r.yaml")
    assert again.recipe == first.recipe and dump(again.recipe) == printed
    assert load_text(as_yaml(first), "r.yaml").recipe == first.recipe
    assert first.origins.keys() == again.origins.keys()
    number = {f"r.yaml:{index + 1}" for index in range(len(printed.splitlines()))}
    assert set(again.origins.values()) <= number | {"derived"}
    SCHEMA.validate(raw)
    SCHEMA.validate(as_dict(first)["recipe"])


PIECES = st.sampled_from(
    [
        *("model", "data", "train", "output_dir", "extends", "columns", "seed", ": ", ":", "\n", "\n  ", "\n- ", "- "),
        *("[", "]", "{", "}", ", ", "'", '"', "&a ", "*a", "!x ", "!!int ", "<<", "|\n", ">\n", "#", " #", "? ", "\t"),
        *("---\n", "...\n", "%YAML 1.2\n", "1e-4", "no", "~", "null", "TODO", "0x1", "x" * 50, "@", "`", "\\", "\r\n"),
        *("\u2028", "\ufeff", "é", "\x07", "\\ud83d", "\\ude00"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(text=st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=60), good=st.booleans())
def test_any_text_is_a_recipe_or_is_refused_at_a_place(text: str, good: bool) -> None:
    assume(not any("\ud800" <= char <= "\udfff" for char in text))
    text = f"model: m\ndata: d\noutput_dir: o\n{text}" if good else text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_bytes(text.encode())
        try:
            resolved = load(path)
        except RecipeError as error:
            assert str(error).startswith(str(path))
            assert all(line.isprintable() for line in str(error).split("\n")), "nothing that could move a cursor"
        else:
            assert load_text(dump(resolved.recipe), "r.yaml").recipe == resolved.recipe


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_recipe_or_are_refused(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_bytes(raw)
        try:
            load(path)
        except RecipeError as error:
            assert str(error).startswith(str(path))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3 * MAX_DEPTH), st.sampled_from(["[", "{a: ", "- ", "{a: [", "- a:\n"]))
def test_any_depth_is_refused_or_read(depth: int, opening: str) -> None:
    try:
        load_text("model: m\ndata: d\noutput_dir: o\nx: " + opening * depth, "r.yaml")
    except RecipeError as error:
        assert str(error).startswith("r.yaml:")
