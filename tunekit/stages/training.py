"""What all stages of training share: recipe -> rows -> tokens -> plan -> loop -> artefact. Composes the parts."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from transformers import set_seed

from tunekit.data.prompts import last_turn
from tunekit.data.tokenise import Reading
from tunekit.errors import RecipeError
from tunekit.evals.task import FoundTask
from tunekit.models.policy import Policy
from tunekit.models.quantised import num_weights
from tunekit.objectives.objective import Objective
from tunekit.recipe.load import Resolved
from tunekit.recipe.schema import Recipe
from tunekit.recipe.show import dump
from tunekit.report.card import licence_of, model_card
from tunekit.report.facts import read_facts
from tunekit.stages import processes, tasks
from tunekit.stages.artefact import base_passport, write_language_model
from tunekit.stages.assemble import (
    DATE,
    find_start,
    flat_values,
    make_policy,
    make_training,
    place_of,
    resume,
)
from tunekit.stages.base import Base, continued, find_base
from tunekit.stages.batch_size import is_auto, settled, try_longest
from tunekit.stages.full_base import beside_full_base
from tunekit.stages.held_out import evaluation, sample_answer, sample_prompt
from tunekit.stages.online import SAMPLES_FILE, Online
from tunekit.stages.preflight import check_offline
from tunekit.stages.read import read_rows
from tunekit.stages.reference import add_reference
from tunekit.stages.rows import Datasets, Rows, readings, reusable
from tunekit.train.engine import Engine
from tunekit.train.folder import open_folder, replace_text, result_file, write_manifest
from tunekit.train.loop import train
from tunekit.train.ranks import join
from tunekit.train.report import plot_curve, read_metrics
from tunekit.train.saving import load_parameters
from tunekit.train.sharding import gathered, is_divided
from tunekit.train.signals import StopRequest
from tunekit.train.training import Training, record

log = logging.getLogger("tunekit")


@dataclass(frozen=True)
class Stage:
    """One kind of training.

    name: of its command;  kind: of its rows;  objective: (recipe, whether the user's own code may run) -> objective
    policy: what is trained;  online: of a stage whose answers the policy writes, what makes rows of them
    write: the artefact, (recipe, training, base, rows, folder, facts, card) -> what `result` gets
    """

    name: str
    kind: str
    objective: Callable[[Recipe, bool], Objective]
    policy: Callable[[Recipe, Base, Rows, Engine], Policy] = make_policy
    online: Callable[[Recipe, Policy, Base, Rows, Path, bool, Engine], Online] | None = None
    write: Callable[[Recipe, Training, Base, Rows, Path, dict[str, Any], str], dict[str, Any]] = write_language_model


def run(
    stage: Stage, resolved: Resolved, datasets: Datasets | None = None, *, allow_code: bool = False
) -> dict[str, Any]:
    """Trains after the recipe and returns what it wrote to `result.json`; raises `TunekitError`s, each an exit code.

    `datasets`: rows from Python, which the recipe names `memory:NAME`;  `allow_code`: a loss of the user's own may run
    """
    ranks = join()
    with ranks.together():
        recipe = processes.restarted(resolved.recipe, ranks)
        if recipe.stage != stage.name:
            raise RecipeError(f"stage: {recipe.stage}: this recipe is not for tunekit {stage.name}")
        objective = stage.objective(recipe, allow_code)
        datasets = reusable(datasets)
        check_offline(recipe, datasets)
    stop = StopRequest()
    resuming = recipe.resume != "never"
    with (
        stop.installed(),
        ranks.together(),
        open_folder(recipe.output_dir, resuming, is_main=ranks.is_main) as folder,
        result_file(folder, stage.name, is_main=ranks.is_main) as result,
        ranks.together(),  # so that the result tells of the process that failed
    ):
        engine = Engine(recipe.report_to, folder, ranks)
        set_seed(recipe.train.seed)
        start = ranks.from_main(lambda: find_start(recipe, folder))
        made = _make(stage, recipe, objective, datasets, allow_code, engine, start, folder)
        training = _assembled(made)
        recipe = try_longest(made.recipe, training, halves=is_auto(recipe) and start is None and ranks.world_size == 1)
        resume(training, start)
        if start is not None:
            stop.outcome = f"stopped before step {training.state.step + 1}; its checkpoint is there as it was"
            result["events"].append({"step": training.state.step, "text": f"resumed from {start['path']}"})
        if engine.is_main:
            replace_text(folder / "recipe.yaml", dump(recipe))
            write_manifest(folder, data=made.rows.facts, base_model=made.passport, contract=training.contract)
        engine.start_trackers(recipe.run_name or folder.name, flat_values(recipe))
        try:
            if not training.state.before:
                read = [] if recipe.data.streaming else readings(recipe.data.train, datasets)
                _measure_before(made, training, read)
            train(training, stop)
            stop.outcome = "training is done and saved; resume=auto makes and verifies the artefact"
            _take_best(recipe, training)
            with gathered(made.policy):
                result |= ranks.from_main(lambda: _finish(made, training, {**result}))
            engine.leave()
        finally:
            result |= _progress(training, folder, [source.path for source in recipe.data.train])
            result |= {"streamed": streamed} if (streamed := made.rows.loader.report()) else {}
            engine.close()
            if made.online:
                made.online.close()
        if engine.is_main:
            tasks.check_gates(recipe, made.measured, result)
    return result


@dataclass(frozen=True)
class _Made:
    """What a run is made from its recipe; `cost` is what the full base does on held-out rows, of a quantised one."""

    stage: Stage
    recipe: Recipe
    objective: Objective
    policy: Policy
    base: Base
    rows: Rows
    online: Online | None
    measured: Sequence[FoundTask]
    engine: Engine
    folder: Path
    passport: dict[str, Any]
    cost: dict[str, float]


def _make(
    stage: Stage,
    recipe: Recipe,
    objective: Objective,
    datasets: Datasets | None,
    allow_code: bool,
    engine: Engine,
    start: dict[str, Any] | None,
    folder: Path,
) -> _Made:
    """Data, then the model, and only then the group of several processes, whose waits have an end."""
    ranks, base = engine.ranks, find_base(recipe)
    recipe = continued(recipe, base)
    measured = tasks.find(recipe)
    day = start["contract"][DATE] if start else ranks.from_main(lambda: date.today().isoformat())
    place, kept = place_of(recipe, ranks, start), folder if ranks.is_main else None

    def read(recipe: Recipe) -> Rows:
        return read_rows(recipe, base, kind=stage.kind, folder=kept, datasets=datasets, day=day, place=place)

    recipe = settled(recipe, base, engine, start, read)
    rows = ranks.main_first(lambda: read(recipe))
    policy, cost = beside_full_base(stage.policy, recipe, objective, base, rows, engine, measure=start is None)
    passport = ranks.from_main(lambda: base_passport(base, policy))
    processes.unite(recipe, policy, rows, engine)
    online = stage.online and stage.online(recipe, policy, base, rows, folder, allow_code, engine)
    rows = online.rows if online else rows
    return _Made(stage, recipe, objective, policy, base, rows, online, measured, engine, folder, passport, cost)


def _assembled(made: _Made) -> Training:
    """The parts of the loop at step 0."""
    recipe, objective, policy, base, rows = made.recipe, made.objective, made.policy, made.base, made.rows
    engine, online = made.engine, made.online
    if objective.needs_reference:
        add_reference(recipe, policy, objective, rows, made.passport, engine)
    evaluate = online.evaluate if online else evaluation(recipe, policy, objective, base, rows, engine)
    if recipe.eval.tasks_at == "evaluations":
        evaluate = tasks.beside(evaluate, made.measured, recipe, policy, base, engine)
    training = make_training(recipe, rows, policy, objective, evaluate, engine, made.passport, made.folder)
    training.health = online.watch if online else training.health
    training.is_divided = is_divided(policy)
    return training


def _measure_before(made: _Made, training: Training, read: Sequence[Reading]) -> None:
    """What the model does on held-out rows, and on the tasks, before step 1."""
    recipe, policy, base, rows, main = made.recipe, made.policy, made.base, made.rows, made.engine.ranks
    if rows.held_out_examples is not None:
        log.info("measuring %d held-out rows before training", len(rows.held_out_examples))
    values = {**training.evaluate(lambda: None), **made.cost}
    with gathered(policy):
        shown = {"sample": main.from_main(lambda: sample_answer(policy, base, rows))}
        shown["tasks"] = main.from_main(
            lambda: tasks.measure(made.measured, recipe, policy, base, made.folder, "before", read)
        )
    training.state.before = values | shown
    if values:
        record(training, values)
        log.info("before training  %s", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))


def _finish(made: _Made, training: Training, result: dict[str, Any]) -> dict[str, Any]:
    """Measures, writes and proves the artefact, and fills in `result`."""
    stage, recipe, base, rows, folder, measured = (
        *(made.stage, made.recipe, made.base, made.rows),
        *(made.folder, made.measured),
    )
    state = training.state
    sample = sample_answer(training.policy, base, rows)
    result["after"] = state.evaluated
    if measured:
        before = state.before.get("tasks", {})
        after = tasks.measure(measured, recipe, training.policy, base, folder, "after")
        result["tasks"] = {"before": before, "after": after, "change": tasks.change(before, after, folder)}
    facts: dict[str, Any] = {"stage": stage.name, "step": state.step, "recipe": recipe.model_dump(mode="json")}
    facts["messages"] = recipe.data.model_dump(include={"system", "system_mode", "reasoning"})
    card = model_card(
        recipe.run_name or folder.resolve().name,
        facts["recipe"],
        result | _progress(training, folder, []),
        read_facts(folder).manifest,
        f"{folder}/model",
        chat=base.tokenizer.chat_template is not None,
        licence=licence_of(base.location),
    )
    result |= stage.write(recipe, training, base, rows, folder, facts, card)
    plot_curve(read_metrics(training.metrics.path), folder, "loss" if stage.online is None else "reward")
    if sample is not None and (prompt := sample_prompt(training.policy, base, rows)) is not None:
        result["sample"] = {
            "prompt": last_turn(prompt),
            "reference": prompt.answer,
            "before": state.before["sample"],
            "after": sample,
        }
    return result


def _take_best(recipe: Recipe, training: Training) -> None:
    """Puts back the best weights, if asked."""
    state = training.state
    if recipe.eval.load_best_model_at_end and state.best_step not in (None, state.step):
        load_parameters(training, training.checkpoints / f"step-{state.best_step}")
        log.info("taking the weights of step %d, the best by %s", state.best_step, recipe.eval.metric_for_best_model)
        state.evaluated = training.evaluate(lambda: None)


def _progress(training: Training, folder: Path, sources: list[str]) -> dict[str, Any]:
    """How far the run came, also when it failed."""
    state = training.state
    paths = {"model": folder / "model", "metrics": training.metrics.path, "loss_curve": folder / "loss.png"}
    paths |= {"reward_curve": folder / "reward.png", "samples": folder / SAMPLES_FILE}
    paths |= {"checkpoints": training.checkpoints, "adapter": folder / "adapter", "base": folder / "base"}
    return {
        "before": {name: value for name, value in state.before.items() if name not in ("sample", "tasks")},
        "last_evaluation": state.evaluated,
        "steps": state.step,
        "best_step": state.best_step,
        "weights": {
            "trained": sum(each.numel() for each in training.parameters.values()),
            "all": sum(num_weights(each) for each in training.policy.model.parameters()),
        },
        "tokens": state.num_tokens,
        "trained_tokens": state.num_trained_tokens,
        "sources": [
            {"path": path, "trained_tokens": count}
            for path, count in itertools.zip_longest(sources, state.trained_by_part, fillvalue=0)
        ],
        "train_seconds": round(state.seconds, 2),
        "tokens_per_second": round(state.num_tokens / state.seconds, 1) if state.seconds else None,
        "paths": {name: str(path) for name, path in paths.items() if path.exists()},
    }
