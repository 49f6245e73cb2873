"""A Ray Train job: Ray places a worker for each process, and starts all anew where one is lost.

`python -m tunekit.launch.ray_train FILE` is the driver. A worker runs the stage in a process of its own, as torchrun's
would be: it takes signals, it has an exit code, and it finds its newest checkpoint in output_dir by itself.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunekit.errors import Preempted, RankFailed
from tunekit.launch.job import RECIPE, Job, Submission

FILE = "ray.json"
AGAIN = (RankFailed.exit_code, Preempted.exit_code)
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def submission(job: Job, address: str | None) -> Submission:
    """address: of a Ray that runs; None: the environment's RAY_ADDRESS, or a Ray of this machine's own"""
    content = {
        "address": address,
        "command": job.command,
        "directory": str(job.directory),
        "workers": job.nodes * job.processes,
        "gpus": bool(job.gpus),
        "storage_path": str(job.folder / "ray"),
        "max_failures": job.max_restarts,
    }
    file = job.folder / FILE
    command = [sys.executable, "-m", "tunekit.launch.ray_train", str(file)]
    return Submission({RECIPE: job.recipe, FILE: json.dumps(content, indent=1) + "\n"}, [command])


def main(file: str) -> int:
    """Runs the job to its end; the exit code of the run, 6 where its restarts are used up."""
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else lines of several processes that are alike vanish
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address=job["address"])
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=job["workers"], use_gpu=job["gpus"]),
        torch_config=TorchConfig(backend="gloo"),  # of Ray's own group, over which nothing is trained
        run_config=RunConfig(
            storage_path=job["storage_path"], failure_config=FailureConfig(max_failures=job["max_failures"])
        ),
    )
    try:
        return int(trainer.fit().return_value)
    except TrainingFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return RankFailed.exit_code


def work(job: dict[str, Any]) -> int:
    """In each worker: the stage as one process of many, by the variables that Ray has set (RANK, MASTER_ADDR, ...).

    Returns its exit code. Raises `RuntimeError` for one that another attempt may mend, which makes Ray start it.
    """
    from ray.train.collective import broadcast_from_rank_zero

    # The port that Ray chose is taken by its own group.
    os.environ["MASTER_PORT"] = str(broadcast_from_rank_zero(_free_port()))
    libc = ctypes.CDLL(None)
    code = subprocess.call(
        job["command"],
        cwd=job["directory"],
        # Ray kills a worker without a word to what it started.
        preexec_fn=lambda: libc.prctl(DIES_WITH_PARENT, signal.SIGKILL),
    )
    if code < 0 or code in AGAIN:
        raise RuntimeError(f"the process ended with {signal.Signals(-code).name if code < 0 else code}")
    return code


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
