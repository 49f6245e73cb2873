"""An sbatch script: one agent on each node, which is stopped in time, saves, and is put back into the queue."""

import re
import shlex
from collections.abc import Mapping

from tunekit.errors import Preempted, RecipeError
from tunekit.launch.job import PORTS, RECIPE, Job, Submission

SCRIPT = "job.sbatch"
OURS = ("nodes", "ntasks", "ntasks-per-node", "requeue", "no-requeue", "open-mode", "signal", "array")
WARNING = 120  # seconds before the time limit at which a run is told to save
LINGER = 10  # seconds that an agent which failed leaves the others to end by themselves


def submission(job: Job, options: Mapping[str, str]) -> Submission:
    """options: of sbatch, by their long names, such as {"partition": "gpu"}. Raises `RecipeError`."""
    for name, value in options.items():
        _check(name, value)
    return Submission({RECIPE: job.recipe, SCRIPT: script(job, options)}, [["sbatch", str(job.folder / SCRIPT)]])


def _check(name: str, value: str) -> None:
    if not re.fullmatch(r"[a-z][a-z-]*", name) or not value.isprintable():
        raise RecipeError(f"--option {name}={value}: is not a long option of sbatch", "Such as --option partition=gpu.")
    if name in OURS:
        raise RecipeError(f"--option {name}: is set by tunekit launch", "Number of machines: --nodes.")


def script(job: Job, options: Mapping[str, str]) -> str:
    settings = {
        "job-name": job.name,
        "output": f"{str(job.folder).replace('%', '%%')}/slurm-%j.out",
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.processes),
        **({"gpus-per-node": str(job.gpus)} if job.gpus else {}),
        "open-mode": "append",
        "signal": f"B:USR1@{WARNING}",
        **options,
    }
    lines = [f"#SBATCH --{name}={_word(value)}" for name, value in settings.items()]
    return "\n".join(["#!/bin/bash", *lines, "#SBATCH --requeue", _body(job)])


def _word(value: str) -> str:
    """A value as sbatch reads it in a script: in double quotes, with backslashes before those and itself."""
    if re.fullmatch(r"[\w./:,@%+=-]+", value, flags=re.ASCII):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _body(job: Job) -> str:
    return f"""
# Written by tunekit launch. One agent on each node; they meet at the first one.
cd {shlex.quote(str(job.directory))} || exit 7
address() {{ scontrol show node "$1" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p'; }}
export -f address
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PET_RDZV_ENDPOINT="$(address "$head"):$(({PORTS.start} + SLURM_JOB_ID % {len(PORTS)}))"
export PET_RDZV_ID="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# USR1 comes before the time limit: save, and go on later. TERM comes with scancel, which is meant, or with a
# preemption, after which Slurm requeues the job itself.
cancelled=
trap 'kill -USR1 "$agents"' USR1
trap 'cancelled=yes; kill -TERM "$agents"' TERM

# srun kills all tasks once one has failed. The pause lets the agents of the other nodes end by themselves before.
srun --kill-on-bad-exit=1 bash -c '
    trap : USR1 TERM
    export PET_NODE_RANK="$SLURM_NODEID" PET_LOCAL_ADDR="$(address "$SLURMD_NODENAME")"
    "$@" || {{ code=$?; sleep {LINGER}; exit $code; }}
' agent {shlex.join(job.command)} &
agents=$!
wait "$agents"
code=$?
while kill -0 "$agents" 2>/dev/null; do  # a signal ended the wait
    wait "$agents"
    code=$?
done

if [ "$code" = {Preempted.exit_code} ] && [ -z "$cancelled" ]; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
"""
