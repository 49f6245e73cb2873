"""A real Slurm of two virtual nodes on this machine: its own configuration, keys and ports, and no trace afterwards."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONF = """
ClusterName=tunekit
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdTimeout=30
KillWait=30
MailProg=/bin/true
NodeName=n[1-2] NodeAddr=127.0.0.1 NodeHostname={host} Port=[{first}-{second}] CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "state").mkdir()
    for node in ("n1", "n2"):
        (folder / f"spool-{node}").mkdir()
    first, second, port = free_ports()
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, port=port, first=first, second=second))
    subprocess.run(["mungekey", "--create", "--keyfile", folder / "munge.key"], check=True)
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock"]
    munge += [f"--{kind}-file={folder}/munged.{kind}" for kind in ("pid", "log", "seed")]
    os.environ["SLURM_CONF"] = str(conf)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            log = (folder / f"{command[0]}-{len(started)}.log").open("w")
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        wait_until_idle(folder)
        yield
    finally:
        said("scancel", "--state=RUNNING", "--signal=KILL", "--full", "--user=root")  # what a failed test left
        said("scancel", "--user=root")
        wait_until_idle(folder)
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        del os.environ["SLURM_CONF"]


def free_ports() -> tuple[int, int, int]:
    """Three of which the first two follow each other, as slurm.conf wants them for two nodes on one address."""
    for first in range(17001, 18000, 2):
        sockets = [socket.socket() for _ in range(3)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + (0, 1, 1000)[offset]))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return first, first + 1, first + 1000
    raise AssertionError("no ports are free")


def wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while said("sinfo", "-h", "-t", "idle", "-o", "%D") != "2":
        logs = "\n".join(f"{log}:\n{log.read_text()[-1500:]}" for log in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"Slurm did not start\n{logs}"
        time.sleep(0.2)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
