"""Two processes train together, as a user starts them, on a tiny random model: to the end, and when one fails."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from preferences import write_recipe
from safetensors.torch import load_file

TWO = "distributed: {processes: 2, timeout: 8, max_restarts: 0}"
# What the second process does to itself once there is a checkpoint, from inside its loss.
OWN_LOSS = """
import os, pathlib, resource, signal, time
import torch.nn.functional as F

def fails(pairs, *, beta):
    folder = pathlib.Path(__file__).parent
    if os.environ.get("RANK", "1") == "1" and (folder / "out/checkpoints/step-2").exists():
        how, when = (folder / "how").read_text(), folder / "when"
        if not when.exists():
            when.write_text(str(time.time()))
            if how == "raise":
                raise ValueError("no loss today")
            if how == "exit":
                os._exit(0)
            if how == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            else:
                os.kill(os.getpid(), getattr(signal, how))
    return F.softplus(-beta * pairs.margin)
"""


def tunekit(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), "tunekit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "result.json").read_text())


def losses_of(folder: Path, out: str = "out") -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def failing(folder: Path, how: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(OWN_LOSS)
    (folder / "how").write_text(how)
    recipe = write_recipe(folder, "dpo", objective=f"{{loss: ['{folder}/own.py:fails']}}")
    recipe.write_text(f"{recipe.read_text()}{TWO}\n")
    return tunekit("dpo", recipe, "--allow-code", "train.max_steps=12", "save.steps=2", *overrides)


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("SIGKILL", 6, "rank 1 was killed by SIGKILL"),
        ("SIGSTOP", 6, "rank 1 did not answer within distributed.timeout"),
        pytest.param("SIGTERM", 75, "SIGTERM: step 3 was finished and saved", marks=pytest.mark.cluster),
        pytest.param("raise", 1, "ValueError: no loss today", marks=pytest.mark.cluster),
        pytest.param("exit", 6, "rank 1 is gone", marks=pytest.mark.cluster),
    ],
)
def test_what_ends_one_process_ends_both(tmp_path: Path, how: str, code: int, told: str) -> None:
    process = failing(tmp_path, how)
    gone = time.time() - float((tmp_path / "when").read_text())
    assert process.returncode == code, process.stderr
    assert process.stderr.count(told) == 1, process.stderr
    assert gone < 20, "seconds until all are gone"
    assert result_of(tmp_path)["exit_code"] == code


@pytest.mark.cluster
def test_a_disk_that_is_full_for_one_process_ends_both(tmp_path: Path) -> None:
    process = failing(tmp_path, "full", "adapter=none", "distributed.strategy=fsdp2", "train.max_steps=4")
    assert process.returncode == 4, process.stderr
    assert (tmp_path / "out/checkpoints/step-2").is_dir() and not list(tmp_path.glob("out/checkpoints/.tmp-*"))


@pytest.mark.cluster
def test_a_process_that_was_killed_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    for name, how in (("killed", "SIGKILL"), ("whole", "SIGCONT")):  # which does nothing to a process that runs
        process = failing(tmp_path / name, how, "distributed.max_restarts=1")
        assert process.returncode == 0, process.stderr
    adapters = [load_file(tmp_path / name / "out/model/adapter_model.safetensors") for name in ("killed", "whole")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(bool((adapters[0][name] == adapters[1][name]).all()) for name in adapters[0])
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")


@pytest.mark.parametrize("adapter", [pytest.param("lora", marks=pytest.mark.cluster), "none"])
@pytest.mark.parametrize("begins_with", [1, pytest.param(2, marks=pytest.mark.cluster)])
def test_a_run_goes_on_with_more_and_with_fewer_processes(tmp_path: Path, adapter: str, begins_with: int) -> None:
    counts = {1: ["train.gradient_accumulation_steps=2", "distributed.processes=1"], 2: ["distributed.strategy=fsdp2"]}
    settings = [f"adapter={adapter}", "train.max_steps=6", "train.per_device_train_batch_size=1", "save.steps=2"]
    whole = failing(tmp_path / "whole", "SIGCONT", *settings, *counts[1])
    assert whole.returncode == 0, whole.stderr
    stopped = failing(tmp_path, "SIGTERM", *settings, *counts[begins_with])
    assert stopped.returncode == 75, stopped.stderr
    recipe = tmp_path / "dpo.yaml"
    process = tunekit("dpo", recipe, "--allow-code", *settings, *counts[3 - begins_with], "resume=auto")
    assert process.returncode == 0, process.stderr
    assert f"was written by {begins_with} process" in process.stderr
    assert losses_of(tmp_path) == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-5)
    weights = "model/adapter_model.safetensors" if adapter == "lora" else "model/model.safetensors"
    ours, theirs = (load_file(folder / "out" / weights) for folder in (tmp_path, tmp_path / "whole"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5


@pytest.mark.parametrize(
    ("stage", "strategy"),
    [
        ("grpo", "ddp"),
        pytest.param("ppo", "fsdp2", marks=pytest.mark.cluster),
        pytest.param("rloo", "ddp", marks=pytest.mark.cluster),
        pytest.param("grpo", "fsdp2", marks=pytest.mark.cluster),
    ],
)
def test_two_processes_roll_out_what_one_does(tmp_path: Path, stage: str, strategy: str) -> None:
    recipe = write_recipe(tmp_path, stage)
    alone = tunekit(stage, recipe, f"output_dir={tmp_path / 'alone'}")
    process = tunekit(stage, recipe, "distributed.processes=2", f"distributed.strategy={strategy}")
    assert (alone.returncode, process.returncode) == (0, 0), process.stderr
    assert losses_of(tmp_path) == pytest.approx(losses_of(tmp_path, "alone"), rel=1e-4, abs=1e-5)


def test_the_best_weights_of_divided_ones_are_those_that_were_measured(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "sft", adapter="none")
    too_fast = ["train.learning_rate=1.0", "eval.steps=1", "eval.load_best_model_at_end=true"]  # so the first is best
    process = tunekit("sft", recipe, *too_fast, "distributed.processes=2", "distributed.strategy=fsdp2")
    assert process.returncode == 0, process.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    best = result_of(tmp_path)["best_step"]
    assert best < 4 and result_of(tmp_path)["after"]["eval_loss"] == pytest.approx(measured[best], rel=1e-6)


@pytest.mark.cluster
def test_processes_of_another_launcher_are_used(tmp_path: Path) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    recipe = write_recipe(tmp_path, "sft")
    process = tunekit("sft", recipe, launcher=launcher)
    assert process.returncode == 0, process.stderr
    assert "2 processes, ddp" in process.stderr and process.stdout.count("done: ") == 1
    process = tunekit("sft", recipe, "distributed.processes=3", f"output_dir={tmp_path / 'b'}", launcher=launcher)
    assert "3 processes on 1 machines are asked for, and this is one of 2" in process.stderr
    assert "exitcode  : 6" in process.stderr


@pytest.mark.cluster
def test_an_agent_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "sft")
    command = [sys.executable, "-m", "tunekit", "sft", str(recipe), "train.max_steps=5000", "distributed.processes=2"]
    agent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = _children(agent.pid)
    assert len(workers) >= 2
    agent.kill()
    deadline = time.monotonic() + 20
    while any(map(_is_there, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_is_there, workers))


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_there(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
