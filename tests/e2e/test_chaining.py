"""Training that starts from an adapter: the three ways, what they start from, and what is left of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from preferences import pairs, run, write_recipe
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.errors import RecipeError
from tunekit.models import export
from tunekit.models.load import load_tokenizer, locate
from tunekit.models.serve import load_for_inference
from tunekit.recipe.load import load
from tunekit.stages import check, merge, reward_artefact

LN2 = 0.6931471805599453
WAYS = {
    "continue": ("adapter={type: lora, from: continue}",),
    "new": ("adapter={type: lora, from: new, r: 4}",),
    "merge_first": ("adapter={type: lora, from: merge_first, r: 4}",),
    "none": ("adapter={type: none, from: merge_first}",),
}
Logits = dict[str, Tensor]


class Chain:
    """An adapter from sft, and preference runs that start from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: dict[Path, Logits] = {}  # of the policy at the end of the run into each folder
        self.sft = folder / "sft" / "out"
        self.results: dict[str, Any] = {}

    def proof(self, folder: Path, logits: Logits, *_: Any) -> float:
        """In place of the fresh process, which costs seconds a run."""
        self.trained[folder.parent] = logits
        return 0.0

    def out(self, way: str) -> Path:
        return self.folder / way / "out"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    made = Chain(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEKIT_CACHE", str(folder / "cache"))
        patch.setattr(export, "verify_in_fresh_process", made.proof)
        patch.setattr(reward_artefact, "verify", lambda *arguments: (0.0, 0.0))
        train = "{max_steps: 2, per_device_train_batch_size: 4, learning_rate: 0.05, warmup_steps: 0}"
        run(write_recipe(folder / "sft", "sft", train=train, adapter="{type: lora, r: 8}"), "sft")
        for way, overrides in WAYS.items():
            recipe = write_recipe(folder / way, "dpo", save="{steps: 1}")
            made.results[way] = run(recipe, "dpo", f"model.name_or_path={made.sft}", *overrides)
        yield made


def logits_of(model: Any, folder: Path) -> Logits:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = (tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in export.PROMPTS)
    with torch.no_grad():
        return {str(i): model.eval()(each).logits[0] for i, each in enumerate(ids)}


def plain(folder: Path) -> Any:
    """As transformers and peft alone load it."""
    adapter = (folder / "adapter_config.json").is_file()
    return (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)


def difference(first: Logits, second: Logits) -> float:
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def mean_logprob(model: Any, folder: Path, name: str) -> float:
    """Summed log-probability of an answer of the held-out pairs under `model`, by the tokenizer's own template."""
    tokenizer, sums = AutoTokenizer.from_pretrained(folder), []
    for pair in pairs()[:4]:
        asked = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, tokenize=False)
        prompt, whole = (
            tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            for text in (asked, asked + pair[name][0]["content"] + "<|im_end|>")
        )
        with torch.no_grad():
            logprobs = model.eval()(whole).logits[0, :-1].log_softmax(-1)
        sums.append(float(logprobs.gather(1, whole[0, 1:, None])[prompt.shape[1] - 1 :].sum()))
    return sum(sums) / len(sums)


@pytest.mark.parametrize("way", WAYS)
def test_training_starts_at_the_model_with_its_adapter(chain: Chain, way: str) -> None:
    before, adapted = chain.results[way]["before"], plain(chain.sft / "model")
    assert before["eval_loss"] == pytest.approx(LN2, abs=1e-5) and before["eval_margin"] == pytest.approx(0, abs=1e-4)
    for name in ("chosen", "rejected"):
        wanted = mean_logprob(adapted, chain.sft / "model", name)
        assert before[f"eval_logps_{name}"] == pytest.approx(wanted, abs=1e-3)
        with adapted.disable_adapter():
            assert abs(mean_logprob(adapted, chain.sft / "model", name) - wanted) > 1, "the adapter makes a difference"
    first = json.loads((chain.out(way) / "metrics.jsonl").read_text().splitlines()[1])
    assert first["step"] == 1 and first["loss"] == pytest.approx(LN2, abs=1e-5)
    assert chain.results[way]["after"]["eval_loss"] != before["eval_loss"]


@pytest.mark.parametrize("way", WAYS)
def test_the_artefact_gives_the_logits_that_were_trained(chain: Chain, way: str) -> None:
    trained, folder = chain.trained[chain.out(way)], chain.out(way) / "model"
    assert difference(logits_of(plain(folder), folder), trained) < 1e-5
    model, _ = load_for_inference(str(chain.out(way)), "float32")
    assert difference(logits_of(model, folder), trained) < 1e-5
    assert difference(logits_of(plain(chain.sft / "model"), folder), trained) > 1e-2, "it was trained"


@pytest.mark.parametrize("way", ["continue", "new", "merge_first"])
def test_merge_joins_the_layers_of_each_way(chain: Chain, way: str, tmp_path: Path) -> None:
    merge.run(str(chain.out(way)), output=str(tmp_path / "merged"), max_difference=None)
    trained = chain.trained[chain.out(way)]
    assert difference(logits_of(plain(tmp_path / "merged"), tmp_path / "merged"), trained) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_the_passport_names_every_layer(chain: Chain, way: str) -> None:
    base = json.loads((chain.out(way) / "model" / "tunekit.json").read_text())["base_model"]
    if way == "merge_first":
        assert base["path"] == str(chain.out(way) / "base") and len(base["sha256"]) == 64
        base = base["made_from"]
    assert base["name"] == "tiny-random/llama" and len(base["sha256"]) == 64
    assert base["adapter"]["name"] == str(chain.sft) and len(base["adapter"]["sha256"]) == 64
    assert base["adapter"]["from"] == ("merge_first" if way == "none" else way)


def test_a_run_on_a_merged_base_may_be_moved(chain: Chain, tmp_path: Path) -> None:
    out, moved = chain.out("merge_first"), tmp_path / "moved"
    shutil.copytree(out, moved)
    (out / "base").rename(out / "gone")
    try:
        model, _ = load_for_inference(str(moved), "float32")
    finally:
        (out / "gone").rename(out / "base")
    with export.serving_attention(model):
        found = export.fixed_logits(model, load_tokenizer(locate(str(moved))))
    assert difference(found, chain.trained[out]) < 1e-5


def test_a_new_adapter_leaves_the_one_beside_it_as_it_is(chain: Chain) -> None:
    first, joined = (
        load_file(folder / "model" / "adapter_model.safetensors") for folder in (chain.sft, chain.out("new"))
    )
    for name, value in first.items():
        if "lora_B" in name:
            assert torch.equal(joined[name][:, :8], value) and joined[name].shape[1] == 8 + 4
            assert joined[name][:, 8:].any(), "the new one is trained"
        else:
            assert torch.equal(joined[name][:8], 2 * value), "alpha / r = 2"


def test_a_chain_has_three_links(chain: Chain) -> None:
    """From the adapter on a merged base, which is itself the product of a chain."""
    recipe = write_recipe(chain.folder / "third", "dpo", adapter="{type: lora, from: new}")
    result = run(recipe, "dpo", f"model.name_or_path={chain.out('merge_first')}")
    second = chain.results["merge_first"]
    assert result["before"]["eval_loss"] == pytest.approx(LN2, abs=1e-5)
    assert result["before"]["eval_logps_chosen"] == pytest.approx(second["after"]["eval_logps_chosen"], abs=1e-3)
    folder = chain.folder / "third" / "out" / "model"
    assert difference(logits_of(plain(folder), folder), chain.trained[folder.parent]) < 1e-5


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("adapter.use_rslora=true",), ()),
        (("adapter.init_lora_weights=orthogonal",), ("adapter.use_rslora=true", "adapter.r=3")),
        (("adapter.target_modules=[v_proj, q_proj]",), ("adapter.target_modules=[o_proj, q_proj]",)),
    ],
)
def test_two_adapters_of_different_kinds_are_joined_into_one(
    chain: Chain, tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    train = "{max_steps: 1, learning_rate: 0.05, warmup_steps: 0}"
    run(write_recipe(tmp_path / "sft", "sft", train=train), "sft", *first)
    recipe = write_recipe(tmp_path / "dpo", "dpo", train=train, adapter="{type: lora, from: new, r: 4, alpha: 32}")
    run(recipe, "dpo", f"model.name_or_path={tmp_path / 'sft' / 'out'}", *second)
    folder = tmp_path / "dpo" / "out" / "model"
    assert difference(logits_of(plain(folder), folder), chain.trained[folder.parent]) < 1e-5


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("use_dora: true", "", "use_dora"),
        ("modules_to_save: [lm_head]", "", "modules_to_save"),
        ("init_lora_weights: pissa", "", "init_lora_weights"),
        ("", "use_dora: true", "use_dora"),
        ("", "modules_to_save: [lm_head]", "modules_to_save"),
        ("", "init_lora_weights: olora", "init_lora_weights"),
    ],
)
def test_adapters_that_cannot_be_joined_are_refused_before_training(
    chain: Chain, tmp_path: Path, first: str, second: str, words: str
) -> None:
    adapter = write_recipe(tmp_path / "sft", "sft", train="{max_steps: 1}", adapter=f"{{type: lora, {first}}}")
    run(adapter, "sft")
    recipe = write_recipe(tmp_path / "dpo", "dpo", adapter=f"{{type: lora, from: new, {second}}}")
    with pytest.raises(RecipeError, match=f"(?s){words}.*merge_first"):
        run(recipe, "dpo", f"model.name_or_path={tmp_path / 'sft' / 'out'}")


def test_a_continued_adapter_keeps_its_settings(chain: Chain) -> None:
    adapter = json.loads((chain.out("continue") / "model" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (8, 16)
    kept = load(str(chain.out("continue") / "recipe.yaml")).recipe.adapter
    assert (kept.r, kept.alpha, kept.start_from) == (8, 16, "continue")


def test_settings_that_an_adapter_has_may_be_written_beside_continue(chain: Chain, tmp_path: Path) -> None:
    adapter = "{type: lora, r: 6, alpha: 30, target_modules: [v_proj, q_proj], modules_to_save: [lm_head]}"
    run(write_recipe(tmp_path / "sft", "sft", train="{max_steps: 1}", adapter=adapter), "sft")
    model = f"model.name_or_path={tmp_path / 'sft' / 'out'}"
    for i, given in enumerate(("r: 6", "alpha: 30", "target_modules: [v_proj, q_proj]", "modules_to_save: [lm_head]")):
        recipe = write_recipe(tmp_path / f"dpo-{i}", "dpo", adapter=f"{{type: lora, from: continue, {given}}}")
        run(recipe, "dpo", model, "train.max_steps=1")
        kept = load(str(recipe.parent / "out" / "recipe.yaml")).recipe.adapter
        assert (kept.r, kept.alpha, kept.modules_to_save) == (6, 30, ["lm_head"])


def test_an_adapter_that_is_damaged_or_of_another_model_is_refused(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.sft / "model", tmp_path / "torn")
    weights = tmp_path / "torn" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(chain.sft / "model", tmp_path / "other")
    weights = tmp_path / "other" / "adapter_model.safetensors"
    save_file({name: value[..., :3].contiguous() for name, value in load_file(weights).items()}, weights)
    for folder in ("torn", "other"):
        for way, overrides in WAYS.items():
            recipe = write_recipe(tmp_path / f"{folder}-{way}", "dpo", model=str(tmp_path / folder))
            with pytest.raises(RecipeError, match=f"the adapter {tmp_path / folder} cannot be put on its base"):
                run(recipe, "dpo", *overrides)


def test_a_reward_model_starts_from_an_adapter_that_is_merged_first(chain: Chain, tmp_path: Path) -> None:
    given = (f"model.name_or_path={chain.sft}", "train.learning_rate=1e-9")
    for kind in ("lora", "none"):
        recipe = write_recipe(tmp_path / kind, "reward", adapter=f"{{type: {kind}, from: merge_first}}")
        run(recipe, "reward", *given)
        folder = tmp_path / kind / "out" / "model"
        made = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).base_model
        wanted = plain(chain.sft / "model").merge_and_unload().base_model
        for (name, ours), theirs in zip(made.named_parameters(), wanted.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5), name
        base = json.loads((folder / "tunekit.json").read_text())["base_model"]
        assert base["adapter"]["from"] == "merge_first"


@pytest.mark.parametrize(
    ("stage", "adapter", "words"),
    [
        ("dpo", "lora", ("continue trains it on", "new trains another one", "merge_first merges it")),
        ("dpo", "none", ("continue trains it on", "new trains another one", "merge_first merges it")),
        ("dpo", "{type: lora, from: continue, r: 4}", ("adapter.r: 4", "has 8", "adapter.start_from: new")),
        ("dpo", "{type: lora, from: continue, alpha: 7}", ("adapter.alpha: 7", "has 16")),
        ("dpo", "{type: lora, from: continue, target_modules: [q_proj]}", ("adapter.target_modules", "down_proj")),
        ("dpo", "{type: none, from: continue}", ("adapter.start_from", "no effect with adapter none")),
        ("dpo", "{type: lora, from: before}", ("before", "merge_first")),
        ("reward", "{type: lora, from: continue}", ("another head", "merge_first")),
        ("reward", "{type: lora, from: new}", ("another head", "merge_first")),
        ("reward", "lora", ("continue trains it on",)),
    ],
)
def test_how_to_start_from_an_adapter_must_be_said(
    chain: Chain, tmp_path: Path, stage: str, adapter: str, words: tuple[str, ...]
) -> None:
    recipe = write_recipe(tmp_path, stage, model=str(chain.sft), adapter=adapter)
    done = CliRunner().invoke(app, [stage, str(recipe)])
    said = " ".join(done.stderr.split())
    assert done.exit_code == 2 and all(word in said for word in words), said


def test_a_way_to_start_from_a_model_that_is_no_adapter_is_refused(chain: Chain, tmp_path: Path) -> None:
    for way in ("continue", "new", "merge_first"):
        recipe = write_recipe(tmp_path, "dpo", adapter=f"{{type: lora, from: {way}}}")
        done = CliRunner().invoke(app, ["dpo", str(recipe)])
        assert done.exit_code == 2 and f"{way}: the model tiny-random/llama is no adapter" in done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_check_passes_for_each_way(chain: Chain, tmp_path: Path, way: str) -> None:
    recipe = write_recipe(tmp_path, "dpo")
    report = check.run(lambda: load(recipe, (f"model.name_or_path={chain.sft}", *WAYS[way])))
    assert report["exit_code"] == 0, report
