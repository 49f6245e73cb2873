"""`tunekit launch --on ray` on a real Ray of this machine: a lost worker brings all back from the checkpoint."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from cluster_runs import STEPS, recipe, result, same_weights, steps, tunekit, undisturbed, wait_for

pytestmark = pytest.mark.cluster


def launched(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = tunekit("launch", "recipe.yaml", "--on", "ray", *arguments)
    log = (folder / "log").open("w")
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True)


def workers(output_dir: Path) -> list[psutil.Process]:
    """The processes that train, not the Ray workers that started them, in the order of their start."""
    recipe = str(output_dir / "launch" / "recipe.yaml")
    found = [each for each in psutil.process_iter(["cmdline", "create_time"]) if recipe in (each.info["cmdline"] or ())]
    return sorted(found, key=lambda each: each.info["create_time"])


def test_a_worker_that_is_killed_costs_only_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    recipe(tmp_path)
    process = launched(tmp_path, "distributed.processes=2")
    log = tmp_path / "log"
    wait_for(lambda: 15 in steps(tmp_path / "out") or process.poll() is not None, log.read_text)
    assert process.poll() is None, log.read_text()
    os.kill(workers(tmp_path / "out")[-1].pid, signal.SIGKILL)
    wait_for(lambda: process.poll() is not None, log.read_text)
    assert process.returncode == 0, log.read_text()
    assert "resuming from out/checkpoints/step-" in log.read_text()
    found = result(tmp_path / "out")
    assert found["status"] == "done" and found["steps"] == STEPS
    assert sorted(set(steps(tmp_path / "out"))) == list(range(1, STEPS + 1))
    assert not workers(tmp_path / "out")
    assert same_weights(tmp_path / "out", undisturbed(tmp_path / "undisturbed"))


def test_what_another_attempt_would_not_mend_ends_the_job_with_its_exit_code(tmp_path: Path) -> None:
    recipe(tmp_path, data="nowhere.jsonl")
    process = launched(tmp_path)
    wait_for(lambda: process.poll() is not None, (tmp_path / "log").read_text)
    said = (tmp_path / "log").read_text()
    assert process.returncode == 3, said
    assert said.count("nowhere.jsonl") and "RETRY" not in said
