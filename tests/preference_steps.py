"""What the numerical tests of preference training share: examples of real rows, objectives, one step's gradients."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CPU, conversations, gradients
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tunekit.data import sources
from tunekit.data.examples import Examples
from tunekit.data.prepare import all_rows
from tunekit.data.rendering import PLAIN
from tunekit.data.rows import Example
from tunekit.data.tokenise import Reading, first_rows
from tunekit.models import builtin
from tunekit.models.load import Location, load_model, load_tokenizer, locate
from tunekit.models.policy import Policy
from tunekit.models.reference import reference_logprobs
from tunekit.objectives.objective import Objective
from tunekit.recipe.load import load
from tunekit.stages import dpo, kto, reward
from tunekit.train.engine import Engine
from tunekit.train.step import StepResult, backward

OBJECTIVES = {"dpo": dpo.objective, "kto": kto.objective, "reward": reward.objective}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No reference of another run is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pair_rows(count: int, *, margins: bool = False) -> list[dict[str, Any]]:
    """Conversations from short to long, one of three; the rejected answer is that of the row before."""
    rows = sorted(conversations(), key=lambda row: sum(len(each["content"]) for each in row.messages))[: 3 * count : 3]
    return [
        {"prompt": row.messages[:-1], "chosen": row.messages[-1:], "rejected": rows[i - 1].messages[-1:]}
        | ({"margin": i / 4} if margins else {})
        for i, row in enumerate(rows)
    ]


def labelled_rows(count: int) -> list[dict[str, Any]]:
    """Two rows with their own answers, which are wanted, then one with that of another row, and so on."""
    return [
        {"prompt": row["prompt"], "completion": row["rejected" if i % 3 == 2 else "chosen"], "label": i % 3 != 2}
        for i, row in enumerate(pair_rows(count))
    ]


def examples_of(rows: Sequence[Mapping[str, Any]]) -> Examples:
    """`rows` rendered and held as a stage holds them, uncut."""
    source = sources.find("memory:rows", datasets={"rows": rows})
    store = first_rows(Reading(source), None, load_tokenizer(locate("tiny-random/llama")), PLAIN)
    assert store.report["rows"] == len(rows), store.report
    return Examples(all_rows([store], 10_000))


def objective_of(folder: Path, stage: str, **settings: Any) -> Objective:
    """The objective that the stage makes of a recipe with these keys under `objective`."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"stage: {stage}\nmodel: tiny-random/llama\ndata: {{train: rows.jsonl}}\n"
        f"objective: {json.dumps(settings)}\noutput_dir: out\n"
    )
    return OBJECTIVES[stage](load(recipe).recipe, False)


def add_reference(policy: Policy, examples: Examples, identity: object) -> None:
    """What `policy` as it is now gives the answers; `identity` is another one for each test."""
    examples.reference = reference_logprobs(policy, examples, 4, [str(identity)])


def move(model: nn.Module, std: float = 0.01) -> None:
    """Moves what is trained away from where it is, so that no margin is 0; the same way every time."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn(parameter.shape, generator=generator)


def save_reward_model(arch: str, folder: Path, pad_id: int) -> Path:
    """The tiny model with a seeded scalar head, saved as transformers does it."""
    torch.manual_seed(0)
    base = builtin.resolve(f"tiny-random/{arch}")
    assert base is not None
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=pad_id)
    nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(folder)
    return folder


def reward_model(folder: Path) -> PreTrainedModel:
    """A saved reward model the way a run loads it, without dropout."""
    location, auto_class = Location(folder.name, str(folder)), AutoModelForSequenceClassification
    model = load_model(location, dtype=torch.float32, device=CPU, auto_class=auto_class)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def step_of(
    policy: Policy, objective: Objective, micro_batches: Sequence[Sequence[Example]]
) -> tuple[StepResult, dict[str, Tensor]]:
    """One step's result and gradients; the policy's `.grad` are cleared before and after."""
    policy.train().zero_grad()
    result = backward(policy, objective, [policy.batch(rows) for rows in micro_batches], Engine())
    found = gradients(policy.model)
    policy.zero_grad()
    return result, found
