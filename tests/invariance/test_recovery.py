"""What an accident at a bad moment, or a run that is started wrongly, must not destroy."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from runs import diverge, run, unproven_artefact, write_recipe
from safetensors.torch import load_file, save_file

from tunekit.data.plan import Plan
from tunekit.errors import DataError, Diverged, Preempted, RecipeError
from tunekit.models import builtin
from tunekit.train import checkpoint, loop
from tunekit.train.signals import StopRequest

__all__ = ["unproven_artefact"]


def test_a_kill_between_the_two_renames_of_a_swap_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    checkpoint.save(tmp_path, 5, {"value": 1}, {})
    rename = Path.rename

    def dying(self: Path, target: Path) -> Path:
        if target.name == "step-5":
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)  # a killed process cleans nothing up
    with pytest.raises(Killed):
        checkpoint.save(tmp_path, 5, {"value": 2}, {})
    monkeypatch.undo()
    assert not (tmp_path / "step-5").exists()
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]
    assert checkpoint.load(tmp_path / "step-5") == {"value": 1}


def test_a_refused_resume_leaves_the_finished_run_as_it_was(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    run(recipe)
    names = ("result.json", "recipe.yaml", "manifest.json", "metrics.jsonl")
    before = {name: (tmp_path / "run" / name).read_text() for name in names}
    with pytest.raises(RecipeError, match=r"train.learning_rate: 0.01 then, 0.5 now"):
        run(recipe, "resume=auto", "train.learning_rate=0.5")
    assert {name: (tmp_path / "run" / name).read_text() for name in names} == before


def test_a_base_that_changed_is_not_resumed(tmp_path: Path) -> None:
    source = builtin.resolve("tiny-random/llama")
    assert source is not None
    base = shutil.copytree(source, tmp_path / "base")
    recipe = write_recipe(tmp_path)
    run(recipe, f"model.name_or_path={base}")
    weights = load_file(base / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match="weights of the model"):
        run(recipe, f"model.name_or_path={base}", "resume=auto")


def test_a_best_checkpoint_that_is_gone_does_not_end_the_run(tmp_path: Path) -> None:
    """With the sign turned the first evaluation is the best one, and its checkpoint is lost before the resume."""
    overrides = ("eval.greater_is_better=true", "eval.steps=2", "eval.load_best_model_at_end=true")
    recipe = write_recipe(tmp_path)
    best = run(recipe, *overrides)["best_step"]
    assert best == 2
    for path in checkpoint.steps_in(tmp_path / "run" / "checkpoints"):
        if path.name == f"step-{best}" or path.name > "step-5":
            shutil.rmtree(path)
    assert run(recipe, *overrides, "resume=auto")["best_step"] > best


def test_weights_that_the_last_update_broke_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        diverge(write_recipe(tmp_path), "train.max_steps=1")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["exit_code"] == 10
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_failed_early_does_not_block_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)

    def full(*arguments: object) -> None:
        raise DataError("stopped on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "backward", full)
        with pytest.raises(DataError):
            run(recipe, "report_to=tensorboard")
    assert run(recipe, "report_to=tensorboard")["status"] == "done"


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RecipeError, match="another run is writing"):
        run(recipe, "resume=auto")


def test_a_signal_passes_through_code_that_swallows_exceptions() -> None:
    stop = StopRequest()
    with pytest.raises(Preempted), stop.installed():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)
        except Exception:  # what libraries do
            pass
        raise AssertionError("the signal was swallowed")


def test_the_longest_padded_batch_counts_its_padding() -> None:
    plan = Plan((600,) * 8 + (4096,) + (10,) * 7, 8, 1, 1, None, 0, "sequential")
    assert plan.longest(padded=False) == tuple(range(8))
    assert plan.longest(padded=True) == tuple(range(8, 16))
