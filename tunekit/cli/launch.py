"""The verb that starts a run on many machines."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.common import (
    AllowCode,
    Json,
    Offline,
    Overrides,
    RecipePath,
    Settings,
    app,
    command,
    load_recipe,
    print_result,
)
from tunekit.errors import RecipeError

if TYPE_CHECKING:
    from tunekit.launch.job import Job, Submission

# The options that each target takes, beside those of all.
TARGETS = {
    "slurm": ("option",),
    "ray": ("address",),
    "kubernetes": ("image", "volume_claim", "namespace", "kind"),
    "ssh": ("hosts",),
}


@app.command()
def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    on: Annotated[str, typer.Option(help="slurm, ray, kubernetes or ssh.")] = "",
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Machines; by default the recipe's distributed.nodes.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs of each machine, and processes on it; left out: no GPUs.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="slurm: an option of sbatch, such as partition=gpu.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="ray: of the cluster's head, HOST:PORT or auto.")] = None,
    image: Annotated[str | None, typer.Option(help="kubernetes: an image with tunekit.")] = None,
    volume_claim: Annotated[
        str | None, typer.Option(metavar="NAME", help="kubernetes: what holds data and output_dir, at /workspace.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="kubernetes: where the objects are made.")] = None,
    kind: Annotated[str | None, typer.Option(help="kubernetes: job, jobset or trainjob; by default job.")] = None,
    hosts: Annotated[str | None, typer.Option(metavar="HOST,...", help="ssh: the machines.")] = None,
    output: Annotated[
        str | None, typer.Option(help="A folder for what is written; by default output_dir/launch.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written and run; do neither.")
    ] = False,
    allow_code: AllowCode = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Starts RECIPE on many machines: writes what a scheduler needs and submits it.

    Examples:

        tunekit launch recipes/chat.yaml --on slurm --nodes 4 --gpus-per-node 8 --option partition=gpu --dry-run

        tunekit launch recipes/chat.yaml --on kubernetes --nodes 2 --image registry/tunekit:1 --volume-claim data

        tunekit launch recipes/chat.yaml distributed.processes=2 --on ssh --hosts node1,node2
    """
    asked = {"option": option, "address": address, "image": image, "volume_claim": volume_claim}
    asked |= {"namespace": namespace, "kind": kind, "hosts": hosts}
    with command(as_json):
        _check(on, asked)
        names = [name for name in (hosts or "").split(",") if name]
        overriding = [*(overrides or ()), *(settings or ())]
        flags = [*(["--allow-code"] if allow_code else []), *(["--offline"] if offline else [])]
        job = _job(recipe, overriding, nodes or len(names) or None, gpus_per_node, output, flags)
        submission = _submission(on, job, asked, names)
        if dry_run:
            print_result(_said(job, submission), _shown(job, submission), as_json)
            return
        raise typer.Exit(_submit(on, job, submission, names, as_json))


def _check(on: str, asked: dict[str, Any]) -> None:
    if on not in TARGETS:
        raise RecipeError(f"--on {on}: no such target" if on else "--on is missing", f"Accepted: {', '.join(TARGETS)}.")
    for name, value in asked.items():
        if value is not None and name not in TARGETS[on]:
            owner = next(target for target, names in TARGETS.items() if name in names)
            raise RecipeError(f"--{name.replace('_', '-')}: is for --on {owner}, and this is --on {on}", "Remove it.")


def _job(
    path: str, overrides: list[str], nodes: int | None, gpus: int | None, output: str | None, flags: Sequence[str]
) -> "Job":
    """The run with the recipe as it is now: what waits in a queue does not follow later edits."""
    from tunekit.launch.job import Job, label
    from tunekit.recipe.show import dump
    from tunekit.stages.pipeline_inputs import code_of

    asked = load_recipe(path, overrides, None).recipe
    processes = gpus or asked.distributed.processes or 1
    if processes == "auto":
        raise RecipeError("distributed.processes: auto: nothing says how many that is", "Give --gpus-per-node.")
    if asked.resume not in ("never", "auto"):
        raise RecipeError(
            f"resume: {asked.resume}: a run that is started again would begin there each time", "Set resume=auto."
        )
    if "--allow-code" not in flags and (code := next(code_of(asked), None)) is not None:
        raise RecipeError(f"{code[0]}: {code[1]} is code", "Read it, and give --allow-code if it may run.")
    sizes = [f"distributed.nodes={nodes or asked.distributed.nodes}", f"distributed.processes={processes}"]
    recipe = load_recipe(path, [*overrides, *sizes, "resume=auto"], None).recipe
    here = Path.cwd()
    return Job(
        name=label(recipe.run_name or Path(recipe.output_dir).name),
        stage=recipe.stage,
        recipe=dump(recipe),
        folder=here / (output or Path(recipe.output_dir) / "launch"),
        directory=here,
        output_dir=recipe.output_dir,
        nodes=recipe.distributed.nodes,
        processes=int(processes),
        gpus=gpus or 0,
        max_restarts=recipe.distributed.max_restarts,
        flags=tuple(flags),
    )


def _submission(on: str, job: "Job", asked: dict[str, Any], hosts: list[str]) -> "Submission":
    from tunekit.launch import kubernetes, ray_train, slurm, ssh

    make: dict[str, Callable[[], Submission]] = {
        "slurm": lambda: slurm.submission(job, _pairs(asked["option"])),
        "ray": lambda: ray_train.submission(job, asked["address"]),
        "kubernetes": lambda: kubernetes.submission(job, kubernetes.cluster_of(*(asked[name] for name in TARGETS[on]))),
        "ssh": lambda: ssh.submission(job, hosts),
    }
    return make[on]()


def _pairs(options: list[str] | None) -> dict[str, str]:
    pairs = [option.partition("=") for option in options or ()]
    for name, equals, value in pairs:
        if not equals or not value:
            raise RecipeError(f"--option {name}{equals}: is not of the form KEY=VALUE", "Such as partition=gpu.")
    return {name: value for name, _, value in pairs}


def _said(job: "Job", submission: "Submission") -> dict[str, Any]:
    files = {str(job.folder / name): text for name, text in submission.files.items()}
    return {"files": files, "commands": submission.commands}


def _shown(job: "Job", submission: "Submission") -> str:
    files = [f"# {job.folder / name}\n{text}" for name, text in submission.files.items()]
    commands = [shlex.join(words) for words in submission.commands]
    return "\n".join([*files, "# would be run:", *commands])


def _submit(on: str, job: "Job", submission: "Submission", hosts: list[str], as_json: bool) -> int:
    """Slurm and Kubernetes take the run over; the others stay, and what is printed there comes here."""
    from tunekit.launch import job as jobs
    from tunekit.launch import ssh

    jobs.write(job.folder, submission.files)
    log = sys.stderr if as_json else sys.stdout
    if on in ("slurm", "kubernetes"):
        said = jobs.submit(submission.commands[0])
        print_result(_said(job, submission) | {"said": said}, f"{job.folder}: {said}", as_json)
        return 0
    code = ssh.run(submission, hosts, log) if on == "ssh" else jobs.stay(submission.commands[0], log)
    print_result(_said(job, submission) | {"exit_code": code}, f"exit code {code}", as_json)
    return code
