"""Verbs that train."""

import os
import sys
from contextlib import redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING

import typer

from tunekit import offline as no_network
from tunekit.cli.common import (
    AllowCode,
    Json,
    Offline,
    Overrides,
    RecipePath,
    Settings,
    app,
    command,
    is_main,
    load_recipe,
    print_result,
    quiet_libraries,
)
from tunekit.errors import leave_outcome

if TYPE_CHECKING:
    from tunekit.recipe.distributed import Distributed


@app.command()
def sft(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Supervised fine-tuning: trains after RECIPE and leaves a verified model in its output_dir.

    Examples:

        tunekit sft recipes/chat.yaml

        tunekit sft recipes/chat.yaml train.learning_rate=1e-4 output_dir=out/lr1e-4

        tunekit sft recipes/chat.yaml resume=auto
    """
    _train("sft", recipe, overrides, settings, offline, as_json)


@app.command()
def reward(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Reward model: learns from pairs of answers which is better, and leaves a sequence-classification checkpoint.

    Examples:

        tunekit reward recipes/reward.yaml

        tunekit reward recipes/reward.yaml objective.center_rewards_coefficient=0.01
    """
    _train("reward", recipe, overrides, settings, offline, as_json)


@app.command()
def kto(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """KTO: aligns a model with single answers, each wanted or not.

    Example: tunekit kto recipes/kto.yaml
    """
    _train("kto", recipe, overrides, settings, offline, as_json)


def _train(
    stage: str,
    recipe: str,
    overrides: list[str] | None,
    settings: list[str] | None,
    offline: bool,
    as_json: bool,
    **options: bool,
) -> None:
    with command(as_json):
        resolved = load_recipe(recipe, overrides, settings, stage)
        quiet_libraries()
        if wants_processes(asked := resolved.recipe.distributed):
            from tunekit.train import launcher

            if asked.nodes > 1 or launcher.count_here(asked.processes) > 1:
                flags = [*_flags({**options, "offline": offline, "json": as_json})]
                arguments = [stage, recipe, *(overrides or ()), *(f"--set={each}" for each in settings or ()), *flags]
                counts = {"nodes": asked.nodes, "max_restarts": asked.max_restarts}
                raise typer.Exit(launcher.start(arguments, processes=asked.processes, **counts))
        if offline:  # not before: the agents of several processes meet over sockets
            no_network.enter()
        from tunekit.stages.present import training_report

        module = import_module(f"tunekit.stages.{stage}")
        with redirect_stdout(sys.stderr):  # trackers print
            result = module.run(resolved, **options)
        if is_main():
            print_result(result, training_report(result), as_json)
        leave_outcome(0)


def wants_processes(asked: "Distributed") -> bool:
    """Whether the recipe asks for several, and this is none of those that a launcher started."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return not started and (asked.nodes > 1 or asked.processes not in (None, 1))


def _flags(options: dict[str, bool]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name, given in options.items() if given]


def _may_run_code(stage: str, about: str, *examples: str) -> None:
    """Registers the command of a stage whose recipe may name functions of the user's own."""
    shown = "\n\n".join(f"    tunekit {stage} {example}" for example in examples)

    @app.command(stage, help=f"{about}\n\nExamples:\n\n{shown}")
    def train(
        recipe: RecipePath,
        overrides: Overrides = None,
        settings: Settings = None,
        allow_code: AllowCode = False,
        offline: Offline = False,
        as_json: Json = False,
    ) -> None:
        _train(stage, recipe, overrides, settings, offline, as_json, allow_code=allow_code)


_may_run_code(
    "dpo",
    "DPO and its family: aligns a model with pairs of answers. What is in RECIPE's objective.loss decides which.",
    "recipes/dpo.yaml",
    "recipes/dpo.yaml objective=simpo objective.beta=2.5 output_dir=out/simpo",
    "recipes/dpo.yaml model=out/chat adapter.from=continue",
)
_may_run_code(
    "ppo",
    "PPO: the policy answers prompts, and a reward model or a function says how well. Needs `rewards` in RECIPE.",
    "recipes/ppo.yaml",
    "recipes/ppo.yaml objective.kl_coef=0.1 value_model=adapter",
)
_may_run_code(
    "grpo",
    "GRPO and its variants: several answers to each prompt are compared. What is in objective.loss decides which.",
    "recipes/grpo.yaml",
    "recipes/grpo.yaml objective=dapo rollout.num_generations=16",
)
_may_run_code(
    "rloo",
    "RLOO: several answers to each prompt, each compared with the mean of the others.",
    "recipes/grpo.yaml objective=rloo",
)
