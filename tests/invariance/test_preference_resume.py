"""Preference runs that are killed and resumed end as those that never stopped: every bit of weights and metrics."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from preferences import run, unprove, write_recipe
from runs import final_state, killed_copy, metric_rows

from tunekit.errors import RecipeError

TRAIN = "{max_steps: 10, per_device_train_batch_size: 2, learning_rate: 0.01}"  # 8 steps an epoch
EVERY = "{steps: 1, total_limit: 100}"
WAYS = ("continue", "new", "merge_first")


@pytest.fixture(autouse=True)
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    unprove(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TUNEKIT_CACHE", str(folder))
        yield folder


def assert_resumes(recipe: Path, stage: str, stops: tuple[int, ...], *overrides: str) -> None:
    result, whole = run(recipe, stage, *overrides), recipe.parent / "out"
    for stop in stops:
        copy = killed_copy(whole, recipe.parent / f"killed-{stop}", stop)
        again = run(recipe, stage, *overrides, "resume=auto", f"output_dir={copy}")
        assert final_state(copy) == final_state(whole)
        assert metric_rows(copy) == metric_rows(whole)
        for key in ("before", "after", "steps", "best_step", "tokens", "trained_tokens", "reward", "merge_difference"):
            assert again.get(key) == result.get(key), key
        for file in whole.glob("*/*.safetensors"):  # the artefact, and of a reward model the adapter
            assert (copy / file.relative_to(whole)).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize("stage", ["dpo", "kto", "reward"])
@pytest.mark.parametrize("adapter", ["{type: lora, dropout: 0.1}", "none"])
def test_a_stage_resumes_bit_for_bit(tmp_path: Path, stage: str, adapter: str) -> None:
    recipe = write_recipe(tmp_path, stage, adapter=adapter, train=TRAIN, save=EVERY)
    assert_resumes(recipe, stage, (1, 8), "train.gradient_accumulation_steps=1", "eval.steps=3")


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("dpo", ("objective.loss=[sigmoid, ipo]", "objective.sft_weight=0.5")),
        ("dpo", ("objective=simpo",)),
        ("dpo", ("adapter.init_lora_weights=gaussian", "train.activation_checkpointing=true")),
        ("dpo", ("adapter.init_lora_weights=false",)),
        ("kto", ("model.dtype=bfloat16",)),
        ("reward", ("model.dtype=bfloat16", "objective.center_rewards_coefficient=0.01")),
    ],
)
def test_other_ways_to_train_resume_bit_for_bit(tmp_path: Path, stage: str, overrides: tuple[str, ...]) -> None:
    recipe = write_recipe(tmp_path, stage, train=TRAIN, save=EVERY)
    assert_resumes(recipe, stage, (3,), "train.gradient_accumulation_steps=3", *overrides)


@pytest.mark.parametrize("way", [*(f"{{type: lora, from: {way}}}" for way in WAYS), "{type: none, from: merge_first}"])
def test_a_chained_run_resumes_bit_for_bit(tmp_path: Path, way: str) -> None:
    run(write_recipe(tmp_path / "sft", "sft", train=TRAIN), "sft")
    first = tmp_path / "sft" / "out"
    recipe = write_recipe(tmp_path, "dpo", adapter=way, model=str(first), save=EVERY)
    assert_resumes(recipe, "dpo", (2, 4))


def test_another_adapter_to_start_from_is_another_run(tmp_path: Path) -> None:
    for name, rate in (("sft", "0.01"), ("other", "0.02")):
        run(write_recipe(tmp_path / name, "sft"), "sft", f"train.learning_rate={rate}")
    recipe = write_recipe(tmp_path, "dpo", adapter="{type: lora, from: continue}", save=EVERY)
    run(recipe, "dpo", f"model.name_or_path={tmp_path / 'sft' / 'out'}")
    copy = killed_copy(tmp_path / "out", tmp_path / "killed", 2)
    (tmp_path / "sft" / "out" / "model").rename(tmp_path / "sft" / "out" / "old")
    (tmp_path / "other" / "out" / "model").rename(tmp_path / "sft" / "out" / "model")
    with pytest.raises(RecipeError, match="weights of the adapter to start from"):
        run(recipe, "dpo", f"model.name_or_path={tmp_path / 'sft' / 'out'}", "resume=auto", f"output_dir={copy}")


def test_a_resumed_run_reads_its_reference_from_the_cache_or_computes_the_same(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path, "kto", save=EVERY)
    run(recipe, "kto", "train.seed=7")
    for i, found in enumerate(("from the cache", "rows in")):
        copy = killed_copy(tmp_path / "out", tmp_path / f"killed-{i}", 2)
        caplog.clear()
        with caplog.at_level("INFO", "tunekit"):
            run(recipe, "kto", "train.seed=7", "resume=auto", f"output_dir={copy}")
        said = [line for line in caplog.messages if line.startswith("reference: ")]
        assert len(said) == 2 and all(found in line for line in said)
        assert final_state(copy) == final_state(tmp_path / "out")
        for file in (cache / "reference").iterdir():
            file.unlink()
