"""`tunekit launch --on ssh` on two hosts, which are two addresses of this machine behind a real sshd."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_runs import STEPS, recipe, result, same_weights, steps, tunekit, undisturbed, wait_for

pytestmark = pytest.mark.cluster

HOSTS = "127.0.0.1,127.0.0.2"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose `ssh` is the real one with keys of its own, and an sshd that accepts them."""
    folder = tmp_path_factory.mktemp("ssh")
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its rights
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "user.pub").chmod(0o600)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"PermitRootLogin prohibit-password\nAcceptEnv OMP_NUM_THREADS\n"
        f"ListenAddress 127.0.0.1:{port}\nListenAddress 127.0.0.2:{port}\n"
    )
    (folder / "ssh_config").write_text(
        f"Port {port}\nIdentityFile {folder}/user\nIdentitiesOnly yes\nStrictHostKeyChecking accept-new\n"
        f"UserKnownHostsFile {folder}/known_hosts\nSetEnv OMP_NUM_THREADS=1\n"  # two hosts share the cores
    )
    wrapper = folder / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config"])
    try:
        yield folder
    finally:
        server.terminate()
        server.wait(10)


def launched(folder: Path, keys: Path, *arguments: str) -> subprocess.Popen[str]:
    command = tunekit("launch", "recipe.yaml", *arguments, "--on", "ssh", "--hosts", HOSTS)
    environment = os.environ | {"PATH": f"{keys}:{os.environ['PATH']}"}
    log = (folder / "log").open("w")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)


def agents(output_dir: Path) -> list[int]:
    recipe = str(output_dir / "launch" / "recipe.yaml")
    return [each.pid for each in psutil.process_iter(["cmdline"]) if recipe in (each.info["cmdline"] or ())]


def ended(process: subprocess.Popen[str], log: Path) -> str:
    wait_for(lambda: process.poll() is not None, log.read_text)
    return log.read_text()


def test_a_run_that_is_told_to_save_goes_on_and_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, keys: Path
) -> None:
    folder = tmp_path / "it's 100% $HOME"
    folder.mkdir()
    recipe(folder)
    process = launched(folder, keys)
    wait_for(lambda: 15 in steps(folder / "out") or process.poll() is not None, (folder / "log").read_text)
    process.send_signal(signal.SIGTERM)
    said = ended(process, folder / "log")
    assert process.returncode == 75, said
    assert "[127.0.0.1] " in said and "[127.0.0.2] " in said
    assert result(folder / "out")["status"] == "preempted" and not agents(folder / "out")
    process = launched(folder, keys)
    assert ended(process, folder / "log") and process.returncode == 0, (folder / "log").read_text()
    assert result(folder / "out")["status"] == "done"
    assert steps(folder / "out") == list(range(1, STEPS + 1)), "what was saved is not trained again"
    assert same_weights(folder / "out", undisturbed(tmp_path / "undisturbed"))


def test_the_machine_that_started_a_run_can_go_away_and_the_run_saves(tmp_path: Path, keys: Path) -> None:
    recipe(tmp_path)
    process = launched(tmp_path, keys)
    wait_for(lambda: 15 in steps(tmp_path / "out") or process.poll() is not None, (tmp_path / "log").read_text)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()
    wait_for(lambda: not agents(tmp_path / "out"))
    assert result(tmp_path / "out")["status"] == "preempted"


def test_the_exit_code_is_that_of_the_first_host_that_fails(tmp_path: Path, keys: Path) -> None:
    recipe(tmp_path, data="nowhere.jsonl")
    process = launched(tmp_path, keys)
    assert "nowhere.jsonl" in ended(process, tmp_path / "log") and process.returncode == 3


def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path, keys: Path) -> None:
    recipe(tmp_path)
    command = tunekit("launch", "recipe.yaml", "--on", "ssh", "--hosts", "127.0.0.3")
    environment = os.environ | {"PATH": f"{keys}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7 and "127.0.0.3: ssh cannot log in there" in done.stderr
