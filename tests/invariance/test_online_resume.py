"""Online runs that are killed, also in the middle of a rollout, and resumed end as those that never stopped."""

from pathlib import Path

import pytest
from preferences import run, unprove, write_recipe
from runs import final_state, killed_copy, metric_rows

EVERY = "{steps: 1, total_limit: 100}"
TRAIN = "{max_steps: 8, per_device_train_batch_size: 3, learning_rate: 0.01}"


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("ppo", ("objective.num_mini_batches=2", "objective.num_ppo_epochs=2", "objective.kl_target=0.1")),
        ("ppo", ("objective.num_ppo_epochs=3", "value_model=adapter", "adapter.dropout=0.1")),
        ("ppo", ("adapter=none", "train.learning_rate=0.001", "objective.entropy_coef=0.01")),
        ("grpo", ("objective.num_iterations=3", "eval.steps=3")),
        ("grpo", ("objective=dapo", "model.dtype=bfloat16")),
        ("rloo", ("objective.num_iterations=2", "objective.num_mini_batches=2")),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    tmp_path: Path, stage: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    unprove(monkeypatch)
    recipe = write_recipe(tmp_path, stage, train=TRAIN, save=EVERY)
    result, whole = run(recipe, stage, *overrides), tmp_path / "out"
    for stop in (1, 5):
        copy = killed_copy(whole, tmp_path / f"killed-{stop}", stop)
        again = run(recipe, stage, *overrides, "resume=auto", f"output_dir={copy}")
        assert final_state(copy) == final_state(whole)
        assert metric_rows(copy) == metric_rows(whole)
        assert {key: again[key] for key in ("before", "after", "steps", "tokens")} == {
            key: result[key] for key in ("before", "after", "steps", "tokens")
        }
        for file in (whole / "model").glob("*.safetensors"):
            assert (copy / "model" / file.name).read_bytes() == file.read_bytes()
