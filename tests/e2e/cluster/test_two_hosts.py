"""Two hosts, each a network namespace of this machine, that meet over a virtual cable (iproute2, as root)."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_runs import recipe, result, same_weights, steps, tunekit, undisturbed, wait_for

pytestmark = pytest.mark.cluster

HOSTS = {"tunekit-a": ("tunekit0", "10.99.0.1"), "tunekit-b": ("tunekit1", "10.99.0.2")}
FIRST = "10.99.0.1:29431"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def hosts() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yields the list of agents to end with the hosts."""
    agents: list[subprocess.Popen[bytes]] = []
    interfaces = [interface for interface, _ in HOSTS.values()]
    for name in HOSTS:
        ip("netns", "add", name)
    try:
        ip("link", "add", interfaces[0], "type", "veth", "peer", "name", interfaces[1])
        for name, (interface, address) in HOSTS.items():
            ip("link", "set", interface, "netns", name)
            inside = ("netns", "exec", name, "ip")
            ip(*inside, "address", "add", f"{address}/24", "dev", interface)
            ip(*inside, "link", "set", interface, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield agents
    finally:
        for agent in agents:
            if agent.poll() is None:
                kill(agent)
        for name in HOSTS:
            ip("netns", "delete", name)


def start(host: str, path: Path) -> subprocess.Popen[bytes]:
    """The agent of a host, in a session of its own, so that all of the host can be killed."""
    interface, address = HOSTS[host]
    found = {"PET_RDZV_ENDPOINT": FIRST, "PET_NODE_RANK": str([*HOSTS].index(host)), "PET_LOCAL_ADDR": address}
    command = tunekit("sft", path, "resume=auto", "distributed.nodes=2", "distributed.processes=1")
    with (path.parent / f"{host}.log").open("a") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *command],
            cwd=path.parent,
            env=os.environ | found | {"GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"},
            stderr=log,
            start_new_session=True,
        )


def kill(agent: subprocess.Popen[bytes]) -> None:
    """All processes of a host: its agent, and the workers, which have sessions of their own."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for pid in (*map(int, children), agent.pid):
        os.kill(pid, signal.SIGKILL)
    agent.wait()


@pytest.mark.parametrize("lost", [*HOSTS])
def test_a_host_is_lost_and_comes_back(tmp_path: Path, hosts: list[subprocess.Popen[bytes]], lost: str) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    agents = {host: start(host, path) for host in HOSTS}
    hosts.extend(agents.values())

    def logs() -> str:
        return "\n".join(f"{host}:\n{(tmp_path / f'{host}.log').read_text()[-3000:]}" for host in HOSTS)

    wait_for(lambda: (out / "checkpoints" / "step-20").exists(), logs)
    kill(agents[lost])
    if lost == "tunekit-a":  # where all meet: the other cannot go on without it
        assert agents["tunekit-b"].wait(60) == 6 and "start all of them again" in logs()
        agents["tunekit-b"] = start("tunekit-b", path)
    agents[lost] = start(lost, path)
    hosts.extend(agents.values())
    wait_for(lambda: all(agent.poll() is not None for agent in agents.values()), logs)
    assert [agent.returncode for agent in agents.values()] == [0, 0], logs()
    assert result(out)["exit_code"] == 0 and "resuming from out/checkpoints/step-" in logs()
    assert steps(out) == list(range(1, len(steps(out)) + 1)), "each step stands once"
    assert same_weights(out, undisturbed(tmp_path / "undisturbed"))
