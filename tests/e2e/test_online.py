"""Online training as a whole: what a run leaves, that it goes on after a kill, and what stops one that cannot learn."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preferences import ONLINE, pairs, run, unprove, write_recipe, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.errors import DataError, Diverged, RecipeError
from tunekit.models.reward import load_reward_model
from tunekit.models.shared_reward import SharedReward
from tunekit.rollout.builtin import Builtin
from tunekit.stages import online
from tunekit.train.report import read_metrics

GAUGES = {
    "reward",
    "reward_std",
    "reward_regex",
    "reward_length",
    "length",
    "ended",
    "repeated",
    "entropy",
    "kl",
    "kl_error",
}
OF_STEP = {"approx_kl", "clip_fraction", "ratio_max", "ratio_inverse_max"}
PASSES = {"ppo": "num_ppo_epochs", "grpo": "num_iterations", "rloo": "num_iterations"}


@pytest.fixture(autouse=True)
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    unprove(monkeypatch)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a reward model that is an adapter of the policy's base."""
    folder = tmp_path_factory.mktemp("reward")
    with pytest.MonkeyPatch.context() as patch:
        unprove(patch)
        run(write_recipe(folder, "reward"), "reward")
    yield folder / "out"


def twice(stage: str) -> str:
    """Two passes over each rollout in two mini-batches."""
    return f"objective.{PASSES[stage]}=2"


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("stage", ONLINE)
def test_a_run_leaves_what_it_promises(tmp_path: Path, stage: str, adapter: str) -> None:
    recipe = write_recipe(tmp_path, stage, adapter=adapter)
    result, out = (
        run(recipe, stage, twice(stage), "objective.num_mini_batches=2", "rollout.samples_steps=4"),
        tmp_path / "out",
    )
    assert (result["status"], result["exit_code"], result["steps"]) == ("done", 0, 4)
    assert (
        {"eval_reward", "eval_reward_std", "eval_length", "eval_ended"}
        <= result["after"].keys()
        == result["before"].keys()
    )
    rows = [row for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 4 and all(row.keys() >= OF_STEP for row in rows)
    known = GAUGES if adapter == "lora" or stage != "grpo" else GAUGES - {"kl", "kl_error"}
    assert rows[0].keys() >= known and not rows[1].keys() & GAUGES, "a rollout for every four steps"
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [each["step"] for each in samples] == [1] * 5
    assert samples[0].keys() >= {"prompt", "text", "reward", "rewards", "ended", "num_tokens"}
    assert {"reward_curve", "samples", "model"} <= result["paths"].keys()
    assert rows[0]["sampling_difference"] < 1e-5


@pytest.mark.parametrize("stage", ONLINE)
def test_the_first_update_starts_from_the_policy_that_wrote_the_answers(tmp_path: Path, stage: str) -> None:
    run(write_recipe(tmp_path, stage), stage, twice(stage))
    first, second, *_ = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert first["ratio_max"] == pytest.approx(1, abs=1e-4) and first["approx_kl"] < 1e-8
    assert second["ratio_max"] > 1.001, "the second pass is over the same answers with other weights"
    assert "reward" in first and "reward" not in second


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("ppo", ("value_model=adapter",)),
        ("ppo", ("objective.kl_target=0.1", "objective.kl_horizon=16", "objective.whiten_rewards=true")),
        ("ppo", ("objective.entropy_coef=0.1", "rollout.temperature=0.7", "objective.kl_estimator=k3")),
        ("ppo", ("train.activation_checkpointing=true", "objective.kl_coef=0")),
        ("grpo", ("objective=dapo", "objective.mask_truncated_completions=true", "rollout.max_new_tokens=200")),
        ("grpo", ("objective=gspo", "objective.beta=0.1")),
        ("grpo", ("objective=dr_grpo", "model.attn_implementation=sdpa")),
        ("grpo", ("objective.scale_rewards=batch", "rollout.top_k=50", "rollout.top_p=0.9")),
        ("rloo", ("objective.normalize_advantages=true", "limits.update_kl=0.000001")),
        ("grpo", ("adapter.use_dora=true", "adapter.dropout=0.1")),
        ("grpo", ("model.name_or_path=tiny-random/gemma2",)),
    ],
)
def test_variants_run(tmp_path: Path, stage: str, overrides: tuple[str, ...]) -> None:
    result = run(write_recipe(tmp_path, stage), stage, twice(stage), *overrides)
    assert result["steps"] == 4 and result["exit_code"] == 0


def test_a_value_model_starts_from_a_reward_model(tmp_path: Path, reward: Path) -> None:
    result = run(write_recipe(tmp_path, "ppo"), "ppo", f"value_model={reward}")
    assert result["exit_code"] == 0
    weights = load_file(tmp_path / "out" / "checkpoints" / "step-4" / "tensors.safetensors")
    names = [name for name in weights if name.startswith("/parameters/value.")]
    assert any("lora_A" in name for name in names) and "/parameters/value.score.weight" in names


@pytest.mark.parametrize("way", ["continue", "new", "merge_first"])
def test_training_goes_on_from_an_adapter_which_is_the_reference(tmp_path: Path, way: str) -> None:
    run(write_recipe(tmp_path / "sft", "sft"), "sft")
    recipe = write_recipe(
        tmp_path,
        "grpo",
        model=f"{{name_or_path: {tmp_path / 'sft' / 'out'}, dtype: float32}}",
        adapter=f"{{type: lora, from: {way}}}",
    )
    run(recipe, "grpo", "objective.beta=0.1", "rollout.num_prompts=2")
    rows = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert abs(rows[0]["kl"]) < 1e-4, "policy and reference are one at the start"
    assert rows[-1]["kl"] > 0.01


def test_the_reward_model_shares_the_backbone_and_says_the_same(
    tmp_path: Path, reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges: list[Any] = []
    made = online.make_rewards

    def spied(*arguments: Any, model: Any, **options: Any) -> Any:
        def load(name: str) -> Any:
            judges.append(model(name))
            return judges[-1]

        return made(*arguments, model=load, **options)

    monkeypatch.setattr(online, "make_rewards", spied)
    result = run(write_recipe(tmp_path, "ppo", rewards=str(reward)), "ppo", "value_model=adapter")
    assert result["exit_code"] == 0
    (judge,) = judges
    assert isinstance(judge, SharedReward)
    texts = [f"<|im_start|>user\n{word}<|im_end|>\n<|im_start|>assistant\n{word}" for word in ("a", "be", "sea " * 9)]
    alone = load_reward_model(str(reward), "float32").rewards(texts)
    assert judge.rewards(texts) == pytest.approx(alone, abs=1e-4), "also after the policy was trained beside it"
    assert max(alone) - min(alone) > 1e-3


def test_a_reward_model_of_another_base_is_loaded_beside_the_policy(tmp_path: Path) -> None:
    run(write_recipe(tmp_path / "r", "reward", model="{name_or_path: tiny-random/qwen3, dtype: float32}"), "reward")
    result = run(write_recipe(tmp_path, "grpo", rewards=str(tmp_path / "r" / "out")), "grpo")
    assert result["exit_code"] == 0


def test_what_is_rewarded_becomes_likelier(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "grpo", rewards="{function: regex, pattern: '[aeiou]'}")
    run(recipe, "grpo", "train.max_steps=12", "rollout.num_generations=16", "train.learning_rate=0.02")
    rewards = [row["reward"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "reward" in row]
    assert rewards[-1] > rewards[0] + 0.4 and len(rewards) == 12, "also where nothing is left to learn"


OWN = """
def nothing(text):
    return None

def always(text):
    return 1.0

def sometimes(text, *, source):
    if source.endswith(":1"):
        raise ValueError("row one")
    return len(text)
"""


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("nothing", DataError, "nothing failed on 4 of 4 answers; the first is to"),
        ("always", DataError, "all answers of the first 3 rollouts have the same reward"),
        ("sometimes", DataError, "sometimes failed on"),
    ],
)
def test_rewards_from_which_nothing_can_be_learnt_end_the_run(
    tmp_path: Path, function: str, error: type[Exception], said: str
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    recipe = write_recipe(tmp_path, "grpo", rewards=f"{tmp_path / 'own.py'}:{function}")
    with pytest.raises(error, match=said):
        run(recipe, "grpo", allow_code=True)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["exit_code"] == 3


def test_code_that_was_not_allowed_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit(9)\n")
    recipe = write_recipe(tmp_path, "ppo", rewards=f"{tmp_path / 'own.py'}:f")
    with pytest.raises(RecipeError, match="--allow-code"):
        run(recipe, "ppo")


def test_a_model_that_never_stops_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "tunekit"):
        run(write_recipe(tmp_path / "a", "grpo"), "grpo", "rollout.max_new_tokens=2", "train.learning_rate=0.00001")
    assert "do not end within rollout.max_new_tokens" in caplog.text
    with pytest.raises(DataError, match="none of 16 answers ended by itself"):
        run(
            write_recipe(tmp_path / "b", "grpo"),
            "grpo",
            "rollout.max_new_tokens=1",
            "objective.mask_truncated_completions=true",
            "train.seed=3",
        )


def test_a_prompt_that_leaves_no_room_for_an_answer_is_over_long(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "grpo")
    with pytest.raises(DataError, match="are over data"):
        run(recipe, "grpo", "rollout.max_new_tokens=2040")
    with pytest.raises(RecipeError, match="max_new_tokens: 3000"):
        run(recipe, "grpo", "rollout.max_new_tokens=3000")


def test_answers_that_are_not_the_policys_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Builtin.sample

    def stale(self: Builtin, prompts: Any, *arguments: Any) -> Any:
        head = self.policy.causal.get_output_embeddings().weight  # type: ignore[union-attr, operator]
        kept = head.detach().clone()
        head.data.mul_(3)
        try:
            return sample(self, prompts, *arguments)
        finally:
            head.data.copy_(kept)

    monkeypatch.setattr(Builtin, "sample", stale)
    with pytest.raises(Diverged, match="log-probabilities of sampling and training differ"):
        run(write_recipe(tmp_path, "grpo"), "grpo")


def test_a_policy_that_leaves_its_reference_ends_the_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "grpo", limits="{kl: 0.000001}")
    with pytest.raises(Diverged, match=r"nats an answer from its reference \(limits.kl: 1e-06\)"):
        run(recipe, "grpo")


def test_a_value_model_with_another_tokenizer_is_refused(tmp_path: Path, reward: Path) -> None:
    copy = tmp_path / "other"
    model = AutoModelForSequenceClassification.from_pretrained(reward / "model")
    tokenizer = AutoTokenizer.from_pretrained(reward / "model")
    tokenizer.add_tokens(["<another>"])
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    with pytest.raises(RecipeError, match="has another tokenizer than the policy"):
        run(write_recipe(tmp_path, "ppo"), "ppo", f"value_model={copy}")


def test_a_preference_row_is_asked_too_and_the_command_line_says_how_it_went(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pairs(8))
    recipe = write_recipe(tmp_path, "grpo", data=f"{{train: {rows}, eval_split: 2}}")
    said = CliRunner().invoke(app, ["grpo", str(recipe), "train.max_steps=2", "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout.splitlines()[-1])["steps"] == 2
    checked = CliRunner().invoke(app, ["check", str(recipe), "output_dir=" + str(tmp_path / "other")])
    assert checked.exit_code == 0 and "2 optimizer steps" in checked.output


def test_rewards_may_not_change_between_a_checkpoint_and_its_run(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def good(text):\n    return len(set(text))\n")
    recipe = write_recipe(tmp_path, "grpo", rewards=f"{own}:good", save="{steps: 2}")
    run(recipe, "grpo", "train.max_steps=4", allow_code=True)
    (tmp_path / "out" / "model").rename(tmp_path / "model")
    own.write_text("def good(text):\n    return -len(set(text))\n")
    with pytest.raises(RecipeError, match="losses and rewards of your own"):
        run(recipe, "grpo", "train.max_steps=4", "resume=auto", allow_code=True)


def test_without_held_out_prompts_tasks_alone_are_measured(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "grpo", data=f"{tmp_path / 'train.jsonl'}", eval="{tasks: [blimp], task_limit: 2}")
    overrides = ("data.eval_split=0", "eval.tasks_at=evaluations", "eval.per_device_eval_batch_size=4")
    assert run(recipe, "grpo", *overrides)["exit_code"] == 0


def test_one_answer_a_rollout_is_something_to_learn_from(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "ppo", rollout="{num_prompts: 1, num_generations: 1, max_new_tokens: 8}")
    assert run(recipe, "ppo", "objective.num_ppo_epochs=1", "train.max_steps=5")["steps"] == 5


def test_an_ending_that_is_paid_for_is_something_to_learn_from(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "ppo", rewards="{function: regex, pattern: 'no such thing'}")
    overrides = ("objective.missing_eos_penalty=1", "rollout.max_new_tokens=120", "objective.num_ppo_epochs=1")
    assert run(recipe, "ppo", *overrides, "train.max_steps=4")["steps"] == 4


def test_early_stopping_makes_no_further_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    sample = Builtin.sample

    def counted(self: Builtin, prompts: Any, count: int, *arguments: Any) -> Any:
        made.append(count)
        return sample(self, prompts, count, *arguments)

    monkeypatch.setattr(Builtin, "sample", counted)
    recipe = write_recipe(tmp_path, "grpo", eval="{steps: 1, early_stopping_patience: 1}")
    result = run(recipe, "grpo", "train.learning_rate=1e-9", "train.max_steps=6")
    assert result["steps"] == 2 and made.count(4) == 2, "the other calls are evaluations"
    run(recipe, "grpo", "train.learning_rate=1e-9", "train.max_steps=6", "resume=auto")
    assert made.count(4) == 2


def test_samples_with_odd_characters_survive_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [{"step": step, "text": "a\u2028b\x85c"} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    online._drop_from(3, path)
    assert read_metrics(path) == rows[:2]


def test_check_does_not_blame_a_reward_for_a_random_model(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import json\ndef good(text):\n    return json.loads(text)['x']\n")
    recipe = write_recipe(tmp_path, "grpo", rewards=f"{tmp_path / 'own.py'}:good")
    said = CliRunner().invoke(app, ["check", str(recipe), "--allow-code"])
    assert said.exit_code == 0 and "answers of a random model" in said.output


def test_check_says_what_is_wrong_with_the_rows_that_a_reward_needs(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "grpo", rewards="number_match")
    rows = [{"prompt": row["prompt"]} for row in pairs(12)]
    write_rows(tmp_path / "train.jsonl", rows)
    said = CliRunner().invoke(app, ["check", str(recipe)])
    assert said.exit_code == 3 and "number_match compares answers with those of the data" in said.output


def test_a_reward_model_that_is_nowhere_is_told(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "grpo", rewards="no/such")
    said = CliRunner().invoke(app, ["grpo", str(recipe)])
    assert said.exit_code == 7 and "no/such is no local folder, no built-in name" in said.stderr
