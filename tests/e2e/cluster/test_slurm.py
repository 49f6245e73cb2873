"""`tunekit launch --on slurm` on a real Slurm of two nodes: submitted, preempted twice, and requeued to the end."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from cluster_runs import STEPS, recipe, result, same_weights, steps, tunekit, undisturbed, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]


def submit(folder: Path, nodes: int = 2) -> str:
    """The number of the job."""
    command = tunekit("launch", "recipe.yaml", "--on", "slurm", "--nodes", nodes, "--json")
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return str(json.loads(process.stdout)["said"].removeprefix("Submitted batch job "))


def shown(job: str, key: str) -> str:
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"\b{key}=(\S+)", said)
    assert found, said
    return found[1]


def log(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "out" / "launch").glob("slurm-*.out"))


def at_step(folder: Path, job: str, step: int) -> None:
    """Waits until the run has made that step and not ended."""
    wait_for(lambda: step in steps(folder / "out") or shown(job, "JobState") == "FAILED", lambda: log(folder))
    assert shown(job, "JobState") == "RUNNING", log(folder)


def runs_again(folder: Path, job: str, restarts: int) -> None:
    def running() -> bool:
        if shown(job, "JobState") == "PENDING":  # Slurm lets a requeued job wait for two minutes
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False)
        return shown(job, "JobState") == "RUNNING" and shown(job, "Restarts") == str(restarts)

    wait_for(running, lambda: log(folder))


def test_a_run_that_is_preempted_twice_is_requeued_and_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "it's 100% $HOME"
    folder.mkdir()
    recipe(folder)
    job = submit(folder)
    at_step(folder, job, 15)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)  # as before the time limit
    runs_again(folder, job, 1)
    at_step(folder, job, STEPS // 2)
    subprocess.run(["scontrol", "requeue", job], check=True)  # as a job of higher priority does
    runs_again(folder, job, 2)
    wait_for(lambda: shown(job, "JobState") in ("COMPLETED", "FAILED"), lambda: log(folder))
    assert shown(job, "JobState") == "COMPLETED", log(folder)
    found = result(folder / "out")
    assert found["status"] == "done" and found["steps"] == STEPS
    made = steps(folder / "out")
    assert sorted(set(made)) == list(range(1, STEPS + 1))
    assert len(made) == STEPS, "what was saved is not trained again"
    assert same_weights(folder / "out", undisturbed(tmp_path / "undisturbed"))


def test_a_job_that_is_cancelled_saves_and_does_not_come_back(tmp_path: Path) -> None:
    recipe(tmp_path)
    job = submit(tmp_path)
    at_step(tmp_path, job, 15)
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: shown(job, "JobState") == "CANCELLED", lambda: log(tmp_path))
    wait_for(lambda: result(tmp_path / "out")["status"] == "preempted", lambda: log(tmp_path))
    assert (tmp_path / "out" / "checkpoints" / f"step-{steps(tmp_path / 'out')[-1]}").is_dir()
    time.sleep(3)
    assert shown(job, "JobState") == "CANCELLED" and shown(job, "Restarts") == "0"


def test_a_run_that_cannot_go_well_ends_the_job_with_its_exit_code(tmp_path: Path) -> None:
    recipe(tmp_path, data="nowhere.jsonl")
    job = submit(tmp_path, nodes=1)
    wait_for(lambda: shown(job, "JobState") == "FAILED", lambda: log(tmp_path))
    assert shown(job, "ExitCode") == "3:0" and shown(job, "Restarts") == "0", log(tmp_path)
