"""Manifests: an Indexed Job with a headless Service, a JobSet, or a TrainJob of Kubeflow; the recipe in a ConfigMap."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

from tunekit.errors import Preempted, RecipeError
from tunekit.launch.job import FINAL, RECIPE, Job, Submission

Kind = Literal["job", "jobset", "trainjob"]
KINDS = get_args(Kind)
MANIFEST = "manifest.yaml"
WORKSPACE = "/workspace"  # where the volume is, and where relative paths start
RECIPES = "/etc/tunekit"
PORT = 29400
SAVING = 120  # seconds between the signal and the end of a pod
CONTAINER = "node"  # the name that Kubeflow's runtimes have for it
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """image: has tunekit installed;  volume_claim: what keeps the data and the output_dir, for all pods"""

    image: str
    volume_claim: str
    namespace: str | None = None
    kind: Kind = "job"


def cluster_of(image: str | None, volume_claim: str | None, namespace: str | None, kind: str | None) -> Cluster:
    """What the command line says of it. Raises `RecipeError`."""
    if image is None:
        raise RecipeError("--image is missing", "tunekit publishes none: give one of yours in which it is installed.")
    if volume_claim is None:
        raise RecipeError("--volume-claim is missing", "What a run writes would be lost with its pods: name a claim.")
    if kind not in (None, *KINDS):
        raise RecipeError(f"--kind {kind}: no such kind", f"Accepted: {', '.join(KINDS)}.")
    for option, name in (("--volume-claim", volume_claim), ("--namespace", namespace)):
        if name is not None and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
            raise RecipeError(f"{option} {name}: is no name in Kubernetes", "Accepted: a-z, 0-9, - and . inside.")
    return Cluster(image, volume_claim, namespace, cast(Kind, kind or "job"))


def submission(job: Job, cluster: Cluster) -> Submission:
    """Raises `RecipeError` where the output would be lost with the pods."""
    place = PurePosixPath(WORKSPACE, job.output_dir)
    if ".." in place.parts or not place.is_relative_to(WORKSPACE) or job.output_dir.startswith("~"):
        raise RecipeError(
            f"output_dir: {job.output_dir}: is not on the volume, which is mounted at {WORKSPACE}",
            f"Give a relative path, which starts at {WORKSPACE}, or one below it.",
        )
    written = "\n---\n".join("\n".join(_yaml(each)) for each in manifests(job, cluster))
    folder = job.folder / MANIFEST
    return Submission({RECIPE: job.recipe, MANIFEST: written + "\n"}, [["kubectl", "apply", "-f", str(folder)]])


def manifests(job: Job, cluster: Cluster) -> list[Manifest]:
    config = _object(job, cluster, "v1", "ConfigMap", {"data": {RECIPE: job.recipe}})
    if cluster.kind == "trainjob":
        return [config, _train_job(job, cluster)]
    if cluster.kind == "jobset":
        return [config, _job_set(job, cluster)]
    selector = {"batch.kubernetes.io/job-name": job.name}
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector}
    service = _object(job, cluster, "v1", "Service", {"spec": spec})
    # Those of the other machines fail with the one that was lost.
    inner = _job_spec(job, cluster, f"{job.name}-0.{job.name}", failures=job.max_restarts * job.nodes)
    inner["template"]["spec"]["subdomain"] = job.name
    return [config, service, _object(job, cluster, "batch/v1", "Job", {"spec": inner})]


def _object(job: Job, cluster: Cluster, version: str, kind: str, content: Manifest) -> Manifest:
    named = {"name": job.name} | ({"namespace": cluster.namespace} if cluster.namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": named, **content}


def _job_spec(job: Job, cluster: Cluster, head: str, failures: int) -> Manifest:
    rules = [
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [Preempted.exit_code]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": list(FINAL)}},
    ]
    return {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": failures,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": _pod(job, cluster, head)},
    }


def _pod(job: Job, cluster: Cluster, head: str) -> Manifest:
    meeting: list[Manifest] = [
        {"name": "PET_RDZV_ENDPOINT", "value": f"{head}:{PORT}"},
        {"name": "PET_RDZV_ID", "value": job.name},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
        {"name": "PET_LOCAL_ADDR", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    container: Manifest = {
        "name": CONTAINER,
        "image": cluster.image,
        "command": _command(job),
        "workingDir": WORKSPACE,
        "env": meeting,
        **_resources(job, "resources"),
        "volumeMounts": _mounts(),
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVING,
        "containers": [container],
        "volumes": _volumes(job, cluster),
    }


def _command(job: Job) -> list[str]:
    return ["tunekit", job.stage, f"{RECIPES}/{RECIPE}", *job.flags]


def _resources(job: Job, key: str) -> Manifest:
    return {key: {"limits": {"nvidia.com/gpu": str(job.gpus)}}} if job.gpus else {}


def _mounts() -> list[Manifest]:
    places = {"recipe": RECIPES, "workspace": WORKSPACE, "shm": "/dev/shm"}
    return [{"name": name, "mountPath": path} for name, path in places.items()]


def _volumes(job: Job, cluster: Cluster) -> list[Manifest]:
    """/dev/shm is 64 MB otherwise, and processes share tensors over it."""
    return [
        {"name": "recipe", "configMap": {"name": job.name}},
        {"name": "workspace", "persistentVolumeClaim": {"claimName": cluster.volume_claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def _job_set(job: Job, cluster: Cluster) -> Manifest:
    """A lost pod fails its Job, and the set starts all anew; what another attempt would not mend fails the set."""
    inner = _job_spec(job, cluster, f"{job.name}-{CONTAINER}-0-0.{job.name}", failures=0)
    rule = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    spec = {
        "network": {"enableDNSHostnames": True, "subdomain": job.name, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": job.max_restarts, "rules": [rule]},
        "replicatedJobs": [{"name": CONTAINER, "replicas": 1, "template": {"spec": inner}}],
    }
    return _object(job, cluster, "jobset.x-k8s.io/v1alpha2", "JobSet", {"spec": spec})


def _train_job(job: Job, cluster: Cluster) -> Manifest:
    """The runtime says where the machines meet (PET_MASTER_ADDR), and what becomes of a pod that failed."""
    trainer = {
        "image": cluster.image,
        "command": ["sh", "-c", 'cd "$0" && exec "$@"', WORKSPACE, *_command(job)],
        "numNodes": job.nodes,
        "numProcPerNode": job.processes,
        **_resources(job, "resourcesPerNode"),
    }
    pod = {
        "terminationGracePeriodSeconds": SAVING,
        "containers": [{"name": CONTAINER, "volumeMounts": _mounts()}],
        "volumes": _volumes(job, cluster),
    }
    replicated = {"name": CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}
    patch = {
        "manager": "tunekit/launch",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}},
    }
    spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer, "runtimePatches": [patch]}
    return _object(job, cluster, "trainer.kubeflow.org/v1alpha1", "TrainJob", {"spec": spec})


def _yaml(value: Manifest, indent: str = "") -> Iterator[str]:
    """Block style; texts in quotes, since kubectl reads YAML 1.1, in which `on` is true."""
    for key, each in value.items():
        if isinstance(each, dict):
            yield f"{indent}{key}:"
            yield from _yaml(each, indent + "  ")
        elif isinstance(each, list) and each and isinstance(each[0], dict):
            yield f"{indent}{key}:"
            for item in each:
                first, *rest = _yaml(item, indent + "  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
        elif isinstance(each, str) and "\n" in each:
            yield f"{indent}{key}: |"
            yield from (f"{indent}  {line}" for line in each.removesuffix("\n").split("\n"))
        else:
            yield f"{indent}{key}: {json.dumps(each)}"
