"""`tunekit plan`: what it counts is what a run has, and what it advises fits by the same count."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

from tests.bench import plan_memory
from tunekit.cli import app
from tunekit.data.rows import Tokens
from tunekit.errors import RecipeError
from tunekit.models import memory, scaling
from tunekit.models.devices import DEVICES, Device, cost, read_prices
from tunekit.models.load import load_config, locate
from tunekit.models.memory import Setup, state_bytes, traced
from tunekit.models.meter import Meter
from tunekit.recipe.load import Resolved, load
from tunekit.stages import plan

LORA = {"r": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": "all-linear"}


def rows(count: int, length: int) -> list[Tokens]:
    return [Tokens(np.zeros(length, np.int32), np.arange(length) > 8, "") for _ in range(count)]


def planned(recipe: Path, gpu: str, *settings: str) -> dict[str, Any]:
    return plan.run(load(recipe, settings), lambda more: load(recipe, [*settings, *more]), gpu=gpu)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    chats = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ab" * 50}]}
        for _ in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: tiny-random/llama\ndata: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}/out\n")
    return file


def test_the_meter_counts_what_a_hand_count_gives() -> None:
    meter = Meter()
    with FakeTensorMode(), meter:
        a, b = torch.empty(64, 32), torch.empty(32, 128)
        c = a @ b
        assert meter.now == 4 * (64 * 32 + 32 * 128 + 64 * 128) and meter.flops == 2 * 64 * 32 * 128
        view = c[:10]
        del c
        assert meter.now == 4 * (64 * 32 + 32 * 128 + 64 * 128), "a view holds what it is a view of"
        del view, a
        assert meter.now == 4 * 32 * 128
    assert meter.peak == 4 * (64 * 32 + 32 * 128 + 64 * 128)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_twice_the_tokens_take_twice_the_activations_and_recomputation_less(arch: str) -> None:
    config = load_config(locate(f"tiny-random/{arch}"))
    one, two = (traced(Setup(config, torch.float32, lora=LORA), rows(count, 300)) for count in (4, 8))
    assert one.traced and two.activations == pytest.approx(2 * one.activations, rel=0.1)
    assert two.flops == pytest.approx(2 * one.flops, rel=0.01)
    again = traced(Setup(config, torch.float32, lora=LORA, checkpointing=True), rows(8, 300))
    assert again.activations < 0.8 * two.activations and again.flops > 1.2 * two.flops


def test_full_training_has_gradients_of_all_weights() -> None:
    config = load_config(locate("tiny-random/llama"))
    setup = Setup(config, torch.float32)
    count = sum(each.numel() for each in memory.build(setup).parameters())
    assert traced(setup, rows(2, 20)).gradients == 4 * count


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_8bit", "lion_32bit", "lion_8bit", "ademamix", "sgd", "adagrad"])
def test_optimizer_states_are_those_that_the_optimizer_makes(name: str) -> None:
    from tunekit.train.optim import make_optimizer

    weights = {"a": torch.nn.Parameter(torch.randn(256, 64)), "b": torch.nn.Parameter(torch.randn(64))}
    optimizer = make_optimizer(name, weights, lr=1e-3, weight_decay=0.0)
    for weight in weights.values():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    known: dict[int, int] = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.numel() > 1 and value.numel() != 256:  # a code book of 256
                known[value.data_ptr()] = value.numel() * value.element_size()
    assert state_bytes(name, list(weights.values())) == pytest.approx(sum(known.values()), rel=0.02)


def test_the_command_prints_parts_that_fit_or_exits_with_5(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "h100-80g", "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["memory"]["fits"]
    assert report["parameters"]["all"] == report["parameters"]["trained"] > 0
    assert "fits         yes" in CliRunner().invoke(app, ["plan", str(recipe), "--gpu", "h100-80g"]).stdout


def test_what_does_not_fit_is_exit_5_and_the_change_fits(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = planned(recipe, "t4")["memory"]["peak"]
    monkeypatch.setitem(DEVICES, "t4", Device("t4", peak - 1000, 1e12, 70))
    report = planned(recipe, "t4")
    assert report["exit_code"] == 5 and report["change"]["peak"] < peak
    settings = [f"{key}={value}" for key, value in report["change"]["set"].items()]
    assert planned(recipe, "t4", *settings)["exit_code"] == 0, "as a user would set it"
    changed = load(recipe, settings).recipe
    assert changed.train.per_device_train_batch_size * changed.train.gradient_accumulation_steps == 8


@pytest.mark.parametrize("settings", [("freeze.layers=[0]",), ("stage=grpo", "rewards=number_match")])
def test_advice_is_what_the_rules_of_a_recipe_take(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    if "stage=grpo" in settings:
        rows = recipe.parent / "rows.jsonl"
        rows.write_text('{"prompt": "1 + 1", "answer": "2"}\n' * 40)
    held = planned(recipe, "t4", *settings)["memory"]
    little = held["baseline"] + held["weights"] // 2  # nothing makes that fit: all changes are tried
    monkeypatch.setitem(DEVICES, "t4", Device("t4", little, 1e12, 70))
    tried = []

    def reload(more: Sequence[str]) -> Resolved:
        found = load(recipe, [*settings, *more])
        tried.append(more)
        return found

    report = plan.run(load(recipe, settings), reload, gpu="t4")
    assert report["change"] is None and tried
    assert not any("adapter.type" in text for more in tried for text in more if "freeze.layers=[0]" in settings)


def test_an_unknown_device_names_the_known_ones(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="h100-80g"):
        planned(recipe, "h1000")


@pytest.mark.parametrize("text", ["{", "devices: 3", "devices: {t4: {price_per_hour: much}}"])
def test_a_file_of_prices_that_says_too_little_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(RecipeError, match="--prices"):
        read_prices(tmp_path / "prices.yaml")


def test_hours_price_and_energy_are_a_hand_count() -> None:
    device = Device("x", 1, 1e12, 100, utilisation=0.5)
    found: dict[str, Any] = cost(3.6e15, device, 2, {"currency": "EUR", "source": "", "x": {"price_per_hour": 3.0}})
    assert found["hours"] == 1 and found["price"] == 6 and found["kwh"] == 0.2


def test_own_runs_give_back_the_law_that_made_them(tmp_path: Path) -> None:
    files = []
    for i, tokens in enumerate((1e5, 2e5, 4e5, 1e6, 3e6)):
        files.append(tmp_path / f"{i}.jsonl")
        files[-1].write_text(
            json.dumps({"tokens": tokens}) + "\n" + json.dumps({"eval_loss": 1.5 + 30 * tokens**-0.3}) + "\n"
        )
    found = plan.fit(files)
    assert found["power"] == pytest.approx(0.3, rel=0.01) and found["floor"] == pytest.approx(1.5, rel=0.01)
    result = CliRunner().invoke(app, ["plan", "--from", *map(str, files)])
    assert result.exit_code == 0 and "5 runs: eval_loss = 1.5 + 30 / tokens ** 0.3" in result.stdout


@pytest.mark.parametrize(
    ("sizes", "losses", "words"),
    [
        ([1, 2, 4], [3, 2, 1], "3 different sizes"),
        ([10, 11, 12, 13], [4, 3, 2, 1], "times the smallest"),
        ([1, 2, 4, 8], [1, 2, 3, 4], "do not carry"),
        ([1, 2, 4, 8, 16], [2.0, 2.1, 1.95, 2.1, 2.0], "do not carry"),
    ],
)
def test_runs_that_carry_no_fit_are_refused(sizes: list[float], losses: list[float], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        scaling.fit_runs(sizes, losses)


def test_repeated_tokens_are_worth_less_the_more_there_are() -> None:
    worth = [scaling.effective_tokens(1.0, epochs) for epochs in (1, 2, 5, 1e6)]
    assert worth[0] == 1 and 1.96 < worth[1] < 2 and worth[3] == pytest.approx(1 + 15.387756)
    assert scaling.HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.94, abs=0.01), "Chinchilla, by a hand count"


def test_laws_of_pre_training_say_nothing_of_what_they_were_not_fitted_on() -> None:
    assert not scaling.beyond_the_laws(1e9, 2e10)
    assert "tokens" in scaling.beyond_the_laws(1e9, 45_000) and "weights" in scaling.beyond_the_laws(1e6, 2e10)


def test_divided_weights_are_held_in_parts_and_gathered_a_layer_at_a_time(recipe: Path) -> None:
    model = memory.build(Setup(load_config(locate("tiny-random/llama")), torch.float32))
    layers = [sum(4 * each.numel() for each in layer.parameters()) for layer in model.model.layers]
    rest = sum(4 * each.numel() for each in model.parameters()) - sum(layers)
    assert memory.gathered_bytes(model, len(layers)) == rest + 2 * max(layers)
    alone = planned(recipe, "t4")["memory"]
    resolved = load(recipe, ["distributed.strategy=fsdp2"])
    divided = plan.run(resolved, lambda more: resolved, gpu="t4", gpus=4)["memory"]
    for part in ("weights", "gradients", "optimizer"):
        assert divided[part] == alone[part] // 4
    assert divided["phases"]["artefact"] >= divided["baseline"] + alone["weights"] + divided["weights"]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        pytest.param(("adapter=lora", "train.activation_checkpointing=true"), marks=pytest.mark.cluster),
    ],
)
def test_what_is_planned_is_within_10_percent_of_what_a_run_takes(tmp_path: Path, settings: tuple[str, ...]) -> None:
    model = plan_memory.random_llama(tmp_path / "model", width=512, layers=8)
    settings = ("train.max_steps=1", "data.eval_split=0", *settings)
    recipe = plan_memory.written(tmp_path, "sft", model, plan_memory.CHAT, settings)
    found = plan_memory.in_its_own_process(recipe)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)
    beside = [found[each] - found["baseline"] for each in ("predicted", "measured")]
    assert beside[0] == pytest.approx(beside[1], rel=0.25)
