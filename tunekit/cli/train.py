"""Verbs that train."""

import sys
from contextlib import redirect_stdout
from importlib import import_module

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
    quiet_libraries,
)


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
def dpo(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """DPO and its family: aligns a model with pairs of answers. What is in RECIPE's objective.loss decides which.

    Examples:

        tunekit dpo recipes/dpo.yaml

        tunekit dpo recipes/dpo.yaml objective=simpo objective.beta=2.5 output_dir=out/simpo

        tunekit dpo recipes/dpo.yaml model=out/chat adapter.from=continue
    """
    _train("dpo", recipe, overrides, settings, offline, as_json, allow_code=allow_code)


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


@app.command()
def ppo(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """PPO: the policy answers prompts, and a reward model or a function says how well. Needs `rewards` in RECIPE.

    Examples:

        tunekit ppo recipes/ppo.yaml

        tunekit ppo recipes/ppo.yaml objective.kl_coef=0.1 value_model=adapter
    """
    _train("ppo", recipe, overrides, settings, offline, as_json, allow_code=allow_code)


@app.command()
def grpo(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """GRPO and its variants: several answers to each prompt are compared. What is in objective.loss decides which.

    Examples:

        tunekit grpo recipes/grpo.yaml

        tunekit grpo recipes/grpo.yaml objective=dapo rollout.num_generations=16
    """
    _train("grpo", recipe, overrides, settings, offline, as_json, allow_code=allow_code)


@app.command()
def rloo(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """RLOO: several answers to each prompt, each compared with the mean of the others.

    Example: tunekit rloo recipes/grpo.yaml objective=rloo
    """
    _train("rloo", recipe, overrides, settings, offline, as_json, allow_code=allow_code)


def _train(
    stage: str,
    recipe: str,
    overrides: list[str] | None,
    settings: list[str] | None,
    offline: bool,
    as_json: bool,
    **options: bool,
) -> None:
    with command(as_json, no_network=offline):
        resolved = load_recipe(recipe, overrides, settings, stage)
        quiet_libraries()
        from tunekit.stages.present import training_report

        module = import_module(f"tunekit.stages.{stage}")
        with redirect_stdout(sys.stderr):  # trackers print
            result = module.run(resolved, **options)
        print_result(result, training_report(result), as_json)
