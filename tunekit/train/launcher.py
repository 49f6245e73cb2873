"""Several processes on this machine, by torchrun's agent, which starts them again where one is lost."""

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tunekit.errors import OUTCOMES, Interrupted, MissingEnvironment, Preempted, RankFailed

log = logging.getLogger("tunekit")

PORT = 29400


def count_here(processes: int | str | None) -> int:
    """Processes on this machine, of the recipe's `distributed.processes`."""
    return max(1, torch.cuda.device_count()) if processes == "auto" else int(processes or 1)


@dataclass(frozen=True)
class Rendezvous:
    """Where the agents of several machines meet, under torchrun's own names; alone, an agent meets nobody."""

    endpoint: str = "localhost:0"
    hosts: bool | None = None
    run_id: str = ""
    address: str | None = None


def rendezvous(nodes: int) -> Rendezvous:
    """From the environment: torchrun's PET_ variables, as Kubernetes sets them, or a Slurm job with a task a machine.

    Raises `MissingEnvironment` where neither says where the machines meet.
    """
    if nodes == 1:
        return Rendezvous(run_id=uuid.uuid4().hex)
    env = os.environ
    endpoint, rank = env.get("PET_RDZV_ENDPOINT"), env.get("PET_NODE_RANK")
    if endpoint is None and "PET_MASTER_ADDR" in env:
        endpoint = f"{env['PET_MASTER_ADDR']}:{env.get('PET_MASTER_PORT', PORT)}"
    run_id = env.get("PET_RDZV_ID") or env.get("SLURM_JOB_ID") or "tunekit"
    if endpoint is None and "SLURM_JOB_NODELIST" in env:
        endpoint = f"{_first_host(env['SLURM_JOB_NODELIST'])}:{PORT + int(env['SLURM_JOB_ID']) % 1000}"
    rank = rank or env.get("SLURM_NODEID")
    if endpoint is None or rank is None:
        raise MissingEnvironment(
            f"distributed.nodes: {nodes}: nothing says where the machines meet",
            "Start the run with tunekit launch, or set PET_RDZV_ENDPOINT=HOST:PORT and PET_NODE_RANK on each machine.",
        )
    return Rendezvous(endpoint, rank == "0", run_id, env.get("PET_LOCAL_ADDR"))


def _first_host(nodes: str) -> str:
    names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    first = names.stdout.split()[0]
    shown = subprocess.run(["scontrol", "show", "node", first], capture_output=True, text=True, check=True).stdout
    found = re.search(r"NodeAddr=(\S+)", shown)
    return found[1] if found else first


def start(arguments: Sequence[str], *, processes: int | str | None, nodes: int, max_restarts: int) -> int:
    """Runs `tunekit ARGUMENTS` in each process of this machine, by torchrun's agent, and returns the exit code.

    A process that is killed or hangs ends the others, and all begin again at the newest checkpoint, up to
    `distributed.max_restarts` times. What a new attempt would not mend ends the run.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("torch.distributed"):  # they tell of their own code; what matters is said here
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and with frames of C++
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else an attempt reads the keys of the one before
    count, meeting = count_here(processes), rendezvous(nodes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=count,
        run_id=meeting.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=meeting.endpoint,
        rdzv_configs={} if meeting.hosts is None else {"is_host": meeting.hosts},
        local_addr=meeting.address,
        max_restarts=max_restarts,
        shutdown_timeout=3600,  # whoever sends a signal knows how long a step and a checkpoint may take
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1,SIGHUP",
    )
    log.info("starting %d processes%s", count, f" on each of {nodes} machines" if nodes > 1 else "")
    with tempfile.TemporaryDirectory() as outcomes:
        os.environ[OUTCOMES] = outcomes
        try:
            elastic_launch(config, sys.executable)("-m", "tunekit", *arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return _failed(rank, failure.exitcode, max_restarts, Path(outcomes))
        except RendezvousError as error:
            raise RankFailed(
                f"the agents of {nodes} machines lost each other at {meeting.endpoint}: {error}",
                "The first machine may be gone, or out of reach: start all of them again.",
            ) from error
        except SignalException as stopped:
            kind = Interrupted if stopped.sigval == signal.SIGINT else Preempted
            return kind.exit_code if (code := _code(Path(outcomes))) is None else code
        return _code(Path(outcomes)) or 0


def _code(outcomes: Path) -> int | None:
    """What the workers here ended with, of which a failed gate is the first one's alone; None where none ended."""
    codes = [int(each.read_text()) for each in outcomes.iterdir()]
    return max(codes, key=lambda code: (code != 0, code != RankFailed.exit_code)) if codes else None


def _failed(rank: int, code: int, max_restarts: int, outcomes: Path) -> int:
    """The exit code of a run that is not tried again. Raises `RankFailed` where a process was killed."""
    if code >= 0:
        return _code(outcomes) or code
    name = signal.Signals(-code).name
    raise RankFailed(
        f"rank {rank} was killed by {name}, and {max_restarts} restarts are used up",
        "The system does this where memory is short: lower the batch size." if name == "SIGKILL" else "",
    )
