"""What is printed of a recipe loads again to the same recipe, and tells where every value came from."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunekit.errors import RecipeError
from tunekit.recipe.load import load
from tunekit.recipe.schema import Recipe
from tunekit.recipe.show import as_dict, as_yaml, dump

SHORT = "model: m\nadapter: lora\ndata: d.jsonl\noutput_dir: o\n"
EVERY_KIND = [
    SHORT,
    SHORT + "train: {global_batch_size: 32, per_device_train_batch_size: 4}\n",
    SHORT + "train: {warmup_steps: 0, learning_rate: 1e-300}\nreport_to: [wandb, mlflow]\n",
    SHORT.replace("lora", "none") + "freeze: {layers: 0-19, embeddings: true}\n",
    SHORT.replace("d.jsonl", "{train: [a, b], eval: c}")
    + "eval: {early_stopping_patience: 2, metrics: [token_f1, exact_match]}\n",
    SHORT.replace("lora", "{type: lora, r: 3, target_modules: ['.*q_proj', x], init_lora_weights: false}"),
    SHORT + "objective: {loss: [ipo, hinge], loss_weights: [1, 0.5], rpo_alpha: 0.1}\n",
    SHORT.replace("lora", "{type: lora, from: continue}") + "stage: kto\nobjective: {undesirable_weight: 1.3}\n",
    SHORT + "stage: reward\nobjective: {center_rewards_coefficient: 0.01}\n",
    SHORT.replace("d.jsonl", "{train: d, eval_split: 0, system: 'a: b #c\n\n  d \"e\" \\'}"),
]


def loaded(text: str) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path).recipe


@pytest.mark.parametrize("text", EVERY_KIND)
def test_dump_and_show_load_again_to_an_equal_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    resolved = load(tmp_path / "r.yaml")
    assert loaded(dump(resolved.recipe)) == resolved.recipe
    assert loaded(as_yaml(resolved)) == resolved.recipe
    assert dump(loaded(dump(resolved.recipe))) == dump(resolved.recipe)


def test_every_line_with_a_value_tells_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(SHORT)
    resolved = load("r.yaml", ["train.seed=7"])
    lines = as_yaml(resolved).splitlines()
    for start, origin in (
        ("  type: lora ", "r.yaml:2"),
        ("    - path: d.jsonl ", "r.yaml:3"),
        ("  seed: 7 ", "override"),
    ):
        (line,) = (line for line in lines if line.startswith(start))
        assert line.endswith(f"# {origin}")
    (line,) = (line for line in lines if line.startswith("  learning_rate: 0.0002 "))
    assert line.endswith("# derived")
    commented = [line for line in lines if "#" in line]
    assert len({line.index("#") for line in commented}) == 1
    assert len(commented) == len(resolved.origins)


def test_as_dict_is_json_with_an_origin_for_every_leaf(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(SHORT)
    shown = json.loads(json.dumps(as_dict(load(tmp_path / "r.yaml"))))

    def leaves(value: Any, path: str) -> set[str]:
        if isinstance(value, dict):
            return {leaf for key, item in value.items() for leaf in leaves(item, f"{path}.{key}")}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return {leaf for index, item in enumerate(value) for leaf in leaves(item, f"{path}.{index}")}
        return {path.removeprefix(".")}

    assert leaves(shown["recipe"], "") == set(shown["origins"])


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=150, deadline=None)
@given(system=TEXT, name=TEXT.filter(bool), rate=st.floats(1e-300, 10), words=st.lists(TEXT.filter(bool), max_size=3))
def test_any_text_and_number_survives_a_dump(system: str, name: str, rate: float, words: list[str]) -> None:
    recipe = loaded(SHORT)
    data = recipe.data.model_copy(update={"system": system})
    train = recipe.train.model_copy(update={"learning_rate": rate})
    adapter = recipe.adapter.model_copy(update={"type": "lora", "modules_to_save": words or None})
    recipe = recipe.model_copy(update={"data": data, "train": train, "adapter": adapter, "run_name": name})
    assert loaded(dump(recipe)) == recipe


KEYS = (
    st.sampled_from(["model", "adapter", "data", "train", "eval", "seed", "r", "type", "path", "steps", "resume"])
    | st.sampled_from(["stage", "objective", "loss", "loss_type", "beta", "label_smoothing", "from"])
    | TEXT
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["lora", "none", "0-3", "x"])
    | TEXT
    | st.sampled_from(["dpo", "kto", "reward", "ipo", "exo_pair", "simpo", "bradley_terry", "a.py:f"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tree=st.dictionaries(KEYS, VALUES, max_size=6),
    keys=st.lists(st.sampled_from(list(Recipe.model_fields)), max_size=4),
    value=VALUES,
    overrides=st.lists(
        st.tuples(st.sampled_from(["data.train.0", "train.seed", "adapter", "x.y", "eval.0"]), TEXT), max_size=2
    ),
)
def test_any_tree_is_valid_or_a_recipe_error(
    tree: dict[str, Any], keys: list[str], value: Any, overrides: list[tuple[str, str]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        recipe = {"model": "m", "data": "d", "output_dir": "o"} | tree | dict.fromkeys(keys, value)
        path.write_text(json.dumps(recipe, ensure_ascii=False).replace("NaN", ".nan").replace("Infinity", ".inf"))
        try:
            resolved = load(path, [f"{key}={text}" for key, text in overrides])
        except RecipeError as error:
            assert str(error)
        else:
            assert loaded(as_yaml(resolved)) == resolved.recipe
