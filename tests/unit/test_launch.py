"""`tunekit launch`: what is written for each scheduler, checked by bash and by the published schemas of Kubernetes."""

import copy
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from commands import tunekit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api import models

from tunekit.errors import RecipeError
from tunekit.launch import kubernetes, slurm, ssh
from tunekit.launch.job import FINAL, PORTS, Job, label
from tunekit.recipe.load import load

NEWEST = "1.37"
CRDS = {"JobSet": models.JobsetV1alpha2JobSet, "TrainJob": models.TrainerV1alpha1TrainJob}
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="/"),
    min_size=1,
    max_size=20,
).filter(lambda name: name not in (".", ".."))
PATHS = NAMES.map(lambda name: f"/w/{name}")


def job(directory: str = "/w", **values: Any) -> Job:
    known = {"name": "chat", "stage": "sft", "recipe": "model: m\n", "nodes": 2, "processes": 8, "gpus": 8}
    known |= {"directory": Path(directory), "folder": Path(directory) / "out" / "launch", "output_dir": "out"}
    return Job(**{**known, "max_restarts": 3, **values})


def cluster(**values: Any) -> kubernetes.Cluster:
    return kubernetes.Cluster(**{"image": "registry/tunekit:1", "volume_claim": "data", **values})


def validate(manifest: dict[str, Any]) -> None:
    """Strictly: a key that the schema does not know is a mistake. Raises what the validator does."""
    crd = CRDS.get(manifest["kind"])
    if crd is None:
        kubernetes_validate.validate(manifest, NEWEST, strict=True)
    else:  # which drops unknown keys without a word
        kept = crd.from_dict(copy.deepcopy(manifest)).to_dict()
        assert kept == manifest


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("model: tiny-random/llama\ndata: rows.jsonl\noutput_dir: out/chat\n")
    return tmp_path


# Slurm


def test_the_sbatch_script_is_what_it_was() -> None:
    """What a cluster runs changes only on purpose."""
    script = slurm.script(job(), {"partition": "gpu", "time": "2:00:00"})
    assert script.splitlines()[:11] == [
        "#!/bin/bash",
        "#SBATCH --job-name=chat",
        "#SBATCH --output=/w/out/launch/slurm-%j.out",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=2:00:00",
    ]
    assert "#SBATCH --requeue\n" in script
    assert f"' agent {sys.executable} -m tunekit sft /w/out/launch/recipe.yaml &\n" in script


@settings(deadline=None, max_examples=30)
@given(PATHS)
@example("/w/it's 100% $HOME")
def test_any_path_is_one_word_in_the_scripts(directory: str) -> None:
    """bash itself reads them: it enters the directory and is given the command as it was meant."""
    wanted = job(directory)
    for script in (slurm.script(wanted, {}), ssh.submission(wanted, ["a", "b"]).files["node.sh"]):
        (entered,) = re.findall(r"^cd (.*) \|\| exit 7$", script, re.M)
        (started,) = re.findall(
            rf"^(?:' agent )?({re.escape(sys.executable)} -m tunekit .*?)(?: 3<&-)? &$", script, re.M
        )
        assert spoken(entered) == [directory]
        assert spoken(started) == [sys.executable, "-m", "tunekit", "sft", f"{directory}/out/launch/recipe.yaml"]


def spoken(text: str) -> list[str]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@settings(deadline=None)
@given(PATHS)
@example('/w/a"b\\c #d')
def test_sbatch_reads_a_path_as_it_is(directory: str) -> None:
    (line,) = re.findall(r"^#SBATCH --output=(.*)$", slurm.script(job(directory), {}), re.M)
    assert as_sbatch_reads(line) == f"{directory.replace('%', '%%')}/out/launch/slurm-%j.out"


def as_sbatch_reads(text: str) -> str:
    """By the rules of its source: quotes group, a backslash takes the next one as it is, # and blanks end a word."""
    read, quote, escaped = "", "", False
    for char in text:
        if not quote and char.isspace():
            break
        if escaped:
            read, escaped = read + char, False
        elif char == "\\":
            escaped = True
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        elif not quote and char == "#":
            break
        else:
            read += char
    assert not quote
    return read


@pytest.mark.parametrize("name", ["it's", 'a "b" $c `d` \\e', "ü %j"])
def test_bash_accepts_the_scripts(name: str) -> None:
    script = slurm.script(job(f"/w/{name}"), {"comment": name})
    for shell, text in (("bash", script), ("sh", ssh.submission(job(f"/w/{name}"), ["a", "b"]).files["node.sh"])):
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def fake_cluster(tmp_path: Path) -> Path:
    """`scontrol` and `srun` as a script meets them; what they were asked is in `asked`."""
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        'case "$2" in hostnames) printf "n1\\nn2\\n";; node) echo "  NodeAddr=10.0.0.1 NodeHostName=n1";; esac\n'
    )
    (tmp_path / "srun").write_text(
        "#!/bin/bash\nset -m\nexport SLURM_NODEID=1 SLURMD_NODENAME=n1\nshift\n"
        '"$@" &\n'
        'for name in USR1 TERM; do trap "kill -$name -- -$!" $name; done\n'  # to all processes of a task
        "wait $!; code=$?; while kill -0 $! 2>/dev/null; do wait $!; code=$?; done; exit $code\n"
    )
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    return tmp_path


def in_slurm(folder: Path, agent: str) -> subprocess.Popen[str]:
    """The script with `agent`, a line of shell, in the place of tunekit; it runs outside of Slurm."""
    script = slurm.script(job(str(folder)), {})
    script = script.replace(shlex.join(job(str(folder)).command), f"bash -c {shlex.quote(agent)}").replace(
        "sleep 10", ":"
    )
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[1-2]"}
    environment |= {"SLURM_CPUS_PER_TASK": "8"}
    return subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)


def test_the_script_tells_each_agent_where_they_meet(fake_cluster: Path) -> None:
    said, _ = in_slurm(fake_cluster, "env | grep ^PET_ | sort").communicate(timeout=20)
    assert said.splitlines() == [
        "PET_LOCAL_ADDR=10.0.0.1",
        "PET_NODE_RANK=1",
        f"PET_RDZV_ENDPOINT=10.0.0.1:{PORTS.start + 2345}",
        "PET_RDZV_ID=12345-0",
    ]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (6, False), *((code, False) for code in FINAL)])
def test_only_a_run_that_was_preempted_is_requeued(fake_cluster: Path, code: int, requeued: bool) -> None:
    process = in_slurm(fake_cluster, f"exit {code}")
    process.communicate(timeout=20)
    assert ("requeue 12345" in (fake_cluster / "asked").read_text()) == requeued
    assert process.returncode == (0 if requeued else code)


@pytest.mark.parametrize(("sent", "requeued"), [("USR1", True), ("TERM", False)])
def test_a_signal_reaches_the_agent_and_the_script_waits_for_it(fake_cluster: Path, sent: str, requeued: bool) -> None:
    """USR1 comes before the time limit; TERM with scancel, after which a job must not come back."""
    agent = f"trap 'sleep 0.3; echo saved; exit 75' {sent}; echo ready; while :; do sleep 0.05; done"
    process = in_slurm(fake_cluster, agent)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.Signals[f"SIG{sent}"])
    said, _ = process.communicate(timeout=20)
    assert said == "saved\n"
    assert ("requeue 12345" in (fake_cluster / "asked").read_text()) == requeued
    assert process.returncode == (0 if requeued else 75)


# Kubernetes


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("kind", kubernetes.KINDS)
def test_the_manifests_are_valid_by_the_published_schemas(kind: kubernetes.Kind, nodes: int, gpus: int) -> None:
    written = kubernetes.submission(job(nodes=nodes, gpus=gpus), cluster(kind=kind, namespace="on")).files[
        "manifest.yaml"
    ]
    found = list(yaml.safe_load_all(written))
    assert [each["kind"] for each in found] == {
        "job": ["ConfigMap", "Service", "Job"],
        "jobset": ["ConfigMap", "JobSet"],
        "trainjob": ["ConfigMap", "TrainJob"],
    }[kind]
    for each in found:
        validate(each)
        assert each["metadata"]["namespace"] == "on"


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("job", "spec.paralelism"),
        ("job", "spec.podFailurePolicy.rule"),
        ("jobset", "spec.failurePolicy.maxRestart"),
        ("jobset", "spec.network.subdomains"),
        ("trainjob", "spec.trainer.numNode"),
        ("trainjob", "spec.runtimePatch"),
    ],
)
def test_the_validators_refuse_a_key_that_there_is_not(kind: kubernetes.Kind, path: str) -> None:
    """What makes the test above one: kubectl may drop such a key without a word."""
    manifest = kubernetes.manifests(job(), cluster(kind=kind))[-1]
    validate(manifest)
    *sections, key = path.split(".")
    place = manifest
    for section in sections:
        place = place[section]
    place[key] = 1
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        validate(manifest)


def test_exit_codes_decide_whether_pods_are_started_again() -> None:
    for kind in ("job", "jobset"):
        found = kubernetes.manifests(job(), cluster(kind=kind))[-1]["spec"]
        inner = found["replicatedJobs"][0]["template"]["spec"] if kind == "jobset" else found
        rules = inner["podFailurePolicy"]["rules"]
        by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
        assert by_code == {75: "Ignore", **dict.fromkeys(FINAL, "FailJob")}
        assert inner["template"]["spec"]["restartPolicy"] == "Never", "what a podFailurePolicy needs"


@settings(deadline=None, max_examples=50)
@given(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True))
@example("on")
@example("1e3")
@example("0b1")
def test_the_manifest_says_what_was_meant_also_to_yaml_1_1(name: str) -> None:
    """There some names are numbers or truth values, unless they are quoted."""
    meant = job(name=name), cluster(namespace=name, volume_claim=name, image=name)
    written = kubernetes.submission(*meant).files["manifest.yaml"]
    assert list(yaml.safe_load_all(written)) == kubernetes.manifests(*meant)


def test_the_recipe_in_the_config_map_is_the_recipe(recipe: Path) -> None:
    done = tunekit(
        *("launch", "recipe.yaml", "train.max_steps=7", "--on", "kubernetes", "--nodes", 2, "--gpus-per-node", 4),
        *("--image", "i", "--volume-claim", "data", "--dry-run", "--json"),
    )
    manifest = json.loads(done.stdout)["files"][f"{recipe}/out/chat/launch/manifest.yaml"]
    (recipe / "again.yaml").write_text(next(yaml.safe_load_all(manifest))["data"]["recipe.yaml"])
    again = load("again.yaml").recipe
    assert (
        again
        == load("recipe.yaml", ["train.max_steps=7", "distributed={nodes: 2, processes: 4}", "resume=auto"]).recipe
    )


# ssh


def test_each_host_is_one_rank_and_all_meet_at_the_first() -> None:
    made = ssh.submission(job(processes=1), ["me@one", "ssh://two:2222"])
    assert [words[-2:] for words in made.commands] == [
        ["me@one", "sh /w/out/launch/node.sh 0 one"],
        ["ssh://two:2222", "sh /w/out/launch/node.sh 1 two"],
    ]
    assert all("BatchMode=yes" in words for words in made.commands)
    assert f"PET_RDZV_ENDPOINT=one:{job().port} " in made.files["node.sh"]


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "ssh://", "a\nb"])
def test_a_host_that_would_be_an_option_of_ssh_is_refused(host: str) -> None:
    with pytest.raises(RecipeError):
        ssh.submission(job(nodes=1), [host])


# The command line


def test_a_dry_run_writes_nothing_and_loads_no_torch(recipe: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom tunekit.cli import app\n"
        "for on in ('slurm', 'ray', 'ssh --hosts a', 'kubernetes --image i --volume-claim v'):\n"
        "    done = CliRunner().invoke(app, ['launch', 'recipe.yaml', '--dry-run', '--on', *on.split()])\n"
        "    assert done.exit_code == 0 and 'resume: auto' in done.stdout and '# would be run:' in done.stdout, done\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=recipe, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in recipe.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--on is missing"),
        (["--on", "pbs"], "--on pbs: no such target"),
        (["--on", "slurm", "--image", "x"], "--image: is for --on kubernetes"),
        (["--on", "slurm", "--option", "nodes=4"], "--nodes"),
        (["--on", "slurm", "--option", "partition"], "KEY=VALUE"),
        (["--on", "slurm", "--option", "comment=a\nb"], "long option of sbatch"),
        (["--on", "kubernetes", "--volume-claim", "x"], "--image is missing"),
        (["--on", "kubernetes", "--image", "x"], "--volume-claim is missing"),
        (["--on", "kubernetes", "--image", "x", "--volume-claim", "A b"], "is no name"),
        (["--on", "kubernetes", "--image", "x", "--volume-claim", "x", "--kind", "pod"], "job, jobset, trainjob"),
        (["output_dir=/tmp/x", "--on", "kubernetes", "--image", "x", "--volume-claim", "x"], "not on the volume"),
        (["output_dir=../x", "--on", "kubernetes", "--image", "x", "--volume-claim", "x"], "not on the volume"),
        (["--on", "ssh", "--hosts", "a,b", "--nodes", "3"], "2 are named"),
        (["distributed.processes=auto", "--on", "slurm"], "--gpus-per-node"),
        (["resume=out/old", "--on", "slurm"], "resume=auto"),
        (["objective.loss=own.py:f", "--on", "slurm"], "--allow-code"),
    ],
)
def test_a_mistake_is_named_before_anything_is_submitted(recipe: Path, arguments: list[str], said: str) -> None:
    done = tunekit("launch", "recipe.yaml", *arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (recipe / "out").exists()


def test_without_the_scheduler_the_files_are_written_and_the_command_is_said(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = tunekit("launch", "recipe.yaml", "--on", "slurm", "--output", "jobs")
    assert done.returncode == 7 and f"sbatch {recipe}/jobs/job.sbatch" in done.stderr
    assert (recipe / "jobs" / "job.sbatch").read_text().startswith("#!/bin/bash\n")


@settings(deadline=None)
@given(st.text(max_size=80))
@example("a" * 39 + "-" + "b" * 9)
@example("7b")
def test_a_name_is_one_of_dns(text: str) -> None:
    """Of a Service, which must begin with a letter."""
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", label(text)) and len(label(text)) <= 40
