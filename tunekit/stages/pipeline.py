"""`tunekit run`: the stages of a pipeline one after the other, each only where something that it reads has changed."""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from tunekit.errors import Interrupted, Preempted, RecipeError, StorageError, TunekitError
from tunekit.recipe.pipeline import Pipeline, Stage
from tunekit.recipe.references import nearest
from tunekit.recipe.show import dump
from tunekit.stages.pipeline_child import Children, exit_code, how_it_ended
from tunekit.stages.pipeline_inputs import Inputs, changes, code_of, inputs_of

log = logging.getLogger("tunekit")

STATE, RESULT, MANIFEST, LOCK = "pipeline.json", "result.json", "manifest.json", ".lock"
PREVIOUS = ".previous"  # what is put behind the name of a folder whose place another run takes
STATUS = {0: "done", Preempted.exit_code: "preempted", Interrupted.exit_code: "interrupted"}
UNFINISHED = {"running": "killed together with the pipeline", "done": "done, and its model is gone"}
State = dict[str, dict[str, Any]]
Action = Literal["run", "continue", "skip", "leave out"]


@dataclass(frozen=True)
class Asked:
    """What the command line says: where to begin even if nothing changed, the one stage to run, what is passed on."""

    first: str | None = None
    only: str | None = None
    allow_code: bool = False
    offline: bool = False


@dataclass(frozen=True)
class Step:
    """What is to be done about a stage, and why.

    forced: the option that asks for it;  inputs: None where they depend on a stage that is to run before
    """

    stage: Stage
    action: Action
    reason: str
    forced: str = ""
    inputs: Inputs | None = None

    def as_dict(self) -> dict[str, Any]:
        recipe = self.stage.resolved.recipe
        named = {"name": self.stage.name, "stage": recipe.stage, "output_dir": recipe.output_dir}
        return {**named, "action": self.action, "reason": self.reason}


def plan(pipeline: Pipeline, asked: Asked) -> list[Step]:
    """What a run would do; nothing is written. Checks all stages as far as what they read is there.

    Raises `RecipeError` (also for a folder in the way) and `DataError`.
    """
    names = [stage.name for stage in pipeline.stages]
    for option, name in (("--from", asked.first), ("--only", asked.only)):
        if name is not None and name not in names:
            raise RecipeError(f"{option} {name}: no such stage{nearest(name, names)}", f"Stages: {', '.join(names)}.")
    if asked.first is not None and asked.only is not None:
        raise RecipeError("--from and --only exclude each other", "Give one of the two.")
    _check_code(pipeline, asked)
    folder = Path(pipeline.output_dir)
    if not (folder / STATE).exists() and any((folder / name).exists() for name in (RESULT, MANIFEST)):
        raise RecipeError(f"output_dir: {folder} is the folder of another run", "Choose another one for the pipeline.")
    state, steps = _read_state(folder), list[Step]()
    first = names.index(asked.first) if asked.first is not None else len(names)
    for index, stage in enumerate(pipeline.stages):
        if asked.only not in (None, stage.name):
            steps.append(Step(stage, "leave out", f"--only {asked.only}"))
            continue
        forced = f"--from {asked.first}" if index >= first else f"--only {asked.only}" if asked.only else ""
        needed = [step for step in steps if step.stage.name in stage.needs]
        if asked.only is not None:
            _check_done(stage, needed)
        running = [step.stage for step in needed if step.action in ("run", "continue")]
        steps.append(_decide(stage, state, forced, running))
    return steps


def run(pipeline: Pipeline, asked: Asked) -> dict[str, Any]:
    """Runs what `plan` says; returns what it wrote to `result.json`, with the exit code of the first red stage.

    Raises `TunekitError`s: what `plan` raises, another run in the same folder (`RecipeError`), a signal that arrived
    between two stages (`Preempted`, `Interrupted`).
    """
    steps = plan(pipeline, asked)  # before anything is written
    folder, children = Path(pipeline.output_dir), Children()
    with children.installed(), _locked(folder), _result_file(folder, pipeline) as result:
        state = _read_state(folder)
        _write_json(folder / STATE, {"stages": state})
        for step in steps:
            children.check()
            if step.inputs is None and step.action != "leave out":
                step = _decide(step.stage, state, step.forced, [])
            said = (
                _skipped(step) if step.action in ("skip", "leave out") else _run(step, asked, folder, state, children)
            )
            result["stages"].append(said)
            if said["exit_code"]:
                result["exit_code"], result["failed"] = said["exit_code"], said["name"]
                result["error"] = f"stage {said['name']}: {said['error']}"
                break
        else:
            result["exit_code"] = 0
    return result


def _check_code(pipeline: Pipeline, asked: Asked) -> None:
    for stage in pipeline.stages:
        for key, function in code_of(stage.resolved.recipe):
            if not asked.allow_code:
                raise RecipeError(
                    f"stages.{stage.name}.{key}: {function} is code", "Read it, and give --allow-code if it may run."
                )


def _check_done(stage: Stage, needed: list[Step]) -> None:
    for each in needed:
        if not is_done(Path(each.stage.resolved.recipe.output_dir)):
            raise RecipeError(
                f"--only {stage.name}: it reads what stage {each.stage.name} leaves, and that one is not done",
                "Run without --only.",
            )


def _decide(stage: Stage, state: State, forced: str, running: list[Stage]) -> Step:
    """What to do about a stage; `forced`: the option that asks for it, `running`: those it needs that are to run."""
    recipe = stage.resolved.recipe
    folder, record = Path(recipe.output_dir), state.get(stage.name)
    present = folder.is_dir() and any(folder.iterdir())
    if record is None or record["output_dir"] != recipe.output_dir:
        if present:
            raise RecipeError(
                f"stages.{stage.name}: {folder} is not empty, and it was not this pipeline that filled it",
                "Choose another output_dir, or remove that folder.",
            )
        record = None
    later = [each.resolved.recipe.output_dir for each in running]
    try:
        inputs = inputs_of(recipe, later)
    except TunekitError as error:
        raise type(error)(f"stages.{stage.name}: {error.message}", error.fix) from error
    if running:
        names = " and ".join(each.name for each in running)
        return Step(stage, "run", forced or f"reads what {names} will leave", forced)
    if record is None:
        return Step(stage, "run", "has not run yet", forced, inputs)
    if changed := changes(record["inputs"], inputs):
        return Step(stage, "run", changed, forced, inputs)
    if is_done(folder):
        return Step(stage, "run" if forced else "skip", forced or "nothing changed", forced, inputs)
    if record["status"] == "done" and not present:
        return Step(stage, "run", "its folder is gone", forced, inputs)
    was = UNFINISHED.get(record["status"], record["status"])
    return Step(stage, "continue" if present else "run", f"was {was}", forced, inputs)


def is_done(folder: Path) -> bool:
    """Whether a run in `folder` came to a good end and left its model there."""
    return _result_of(folder).get("exit_code") == 0 and (folder / "model").is_dir()


def _run(step: Step, asked: Asked, folder: Path, state: State, children: Children) -> dict[str, Any]:
    """Runs a stage in a process of its own and keeps in the state what became of it."""
    stage, recipe = step.stage, step.stage.resolved.recipe
    log.info("stage %s: %s (%s)", stage.name, "runs" if step.action == "run" else "goes on", step.reason)
    if step.action == "run":
        _set_aside(Path(recipe.output_dir))
    else:
        recipe = recipe.model_copy(update={"resume": "auto"})
    record: dict[str, Any] = {"status": "running", "output_dir": recipe.output_dir, "inputs": step.inputs}
    state[stage.name] = record
    _write_json(folder / STATE, {"stages": state})
    file = folder / f"{stage.name}.yaml"
    _replace(file, dump(recipe))
    flags = ["--allow-code"] if asked.allow_code and any(code_of(recipe)) else []
    flags += ["--offline"] if asked.offline else []
    started = time.time()
    code, output = children.run([recipe.stage, str(file), "--json", *flags])
    status = STATUS.get(exit_code(code), "failed" if code > 0 else "killed")
    record |= {"status": status, "exit_code": exit_code(code), "seconds": round(time.time() - started, 2)}
    _write_json(folder / STATE, {"stages": state})
    said = _said(step, "ran" if status == "done" else status, record["seconds"], record["exit_code"])
    if status != "done":
        said["error"] = _error_of(output) or how_it_ended(code)
    return said


def _set_aside(folder: Path) -> None:
    """Makes room for a run: what an earlier one left is kept as `folder.previous`, unless it is less than what is."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    previous = folder.with_name(folder.name + PREVIOUS)
    if not is_done(folder) and is_done(previous):
        log.info("%s: what the unfinished run left there is removed; %s stays", folder, previous)
        shutil.rmtree(folder)
        return
    if previous.exists():
        shutil.rmtree(previous)
    folder.rename(previous)
    log.info("%s: what the run before left there is kept as %s", folder, previous)


def _skipped(step: Step) -> dict[str, Any]:
    status = "skipped" if step.action == "skip" else "left out"
    log.info("stage %s: %s (%s)", step.stage.name, status, step.reason)
    return _said(step, status, 0.0, 0)


def _said(step: Step, status: str, seconds: float, code: int) -> dict[str, Any]:
    """What `result.json` says of a stage; the figures are those of its own."""
    recipe = step.stage.resolved.recipe
    found = _result_of(Path(recipe.output_dir)) if status in ("ran", "skipped") else {}
    named = {"name": step.stage.name, "stage": recipe.stage, "status": status, "reason": step.reason}
    figures = {"main": recipe.eval.metric_for_best_model, "before": found.get("before"), "after": found.get("after")}
    return {**named, "exit_code": code, "seconds": seconds, **figures, "output_dir": recipe.output_dir}


def _error_of(output: str) -> str:
    """What a stage says of its end on standard output."""
    try:
        return str(json.loads(output)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it against other runs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise RecipeError(f"output_dir: {folder}: another run is writing to it") from None
    except OSError as error:
        raise StorageError(f"output_dir: {error.filename or folder}: {error.strerror}") from error


@contextmanager
def _result_file(folder: Path, pipeline: Pipeline) -> Iterator[dict[str, Any]]:
    """Yields what becomes `result.json`, whatever happens in the block."""
    started = time.time()
    result: dict[str, Any] = {"pipeline": pipeline.path, "status": "failed", "exit_code": 1, "stages": []}
    try:
        yield result
    except TunekitError as error:
        result |= {"exit_code": error.exit_code, "error": str(error)}
        raise
    finally:
        result |= {"status": STATUS.get(result["exit_code"], "failed"), "seconds": round(time.time() - started, 2)}
        _write_json(folder / RESULT, result)


def _read_state(folder: Path) -> State:
    try:
        state: State = json.loads((folder / STATE).read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{folder / STATE} is damaged: {error}", "Choose another output_dir.") from error
    return state


def _result_of(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _replace(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _replace(path: Path, text: str) -> None:
    """In one rename, so that a kill leaves no half a file."""
    staging = path.with_name(f"{path.name}.tmp")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)
