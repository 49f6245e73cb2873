"""What the numerical tests of online training share: sampled answers of unequal length, the actor, and its step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from preference_steps import move
from tiny import ARCHS, PAD_ID, chat_rows, gradients, tiny_model
from torch import Tensor, nn

from tunekit.data.rows import Prompt, Sampled
from tunekit.models.actor import Actor, Reference, Value, reference_of
from tunekit.models.adapters import add_lora
from tunekit.objectives.objective import Objective
from tunekit.rollout.collect import Asked, sampled_row
from tunekit.rollout.samples import Completion
from tunekit.train.engine import Engine
from tunekit.train.step import StepResult, backward

EOS = 258
PROMPTS = (33, 17, 40)  # tokens; a sliding window of 24 cuts two of them
ANSWERS = ((5, 1, 9, 3), (2, 12, 7, 4), (6, 8, 1, 11))


def asked() -> list[Asked]:
    """The beginnings of real conversations."""
    rows = zip(chat_rows(len(PROMPTS)), PROMPTS, strict=True)
    return [Asked(Prompt("", f"a.jsonl:{i}"), row.ids[:length]) for i, (row, length) in enumerate(rows)]


def sampled_rows() -> list[Sampled]:
    """Four answers to each prompt, of random tokens; one in two ends by itself."""
    random, rows = np.random.default_rng(0), []
    for group, (prompt, lengths) in enumerate(zip(asked(), ANSWERS, strict=True)):
        for number, length in enumerate(lengths):
            ids = random.integers(0, 256, length).astype(np.int32)
            ids[-1] = EOS if number % 2 else ids[-1]
            rows.append(sampled_row(prompt, Completion(ids, None, bool(number % 2)), group))
    return rows


def actor_of(arch: str, *, temperature: float, entropy: bool = False, lora: bool = False) -> Actor:
    """Proven, and nothing is fallen back to."""
    model: nn.Module = tiny_model(arch, **ARCHS[arch])
    if lora:
        torch.manual_seed(0)
        model = add_lora(model, r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")  # type: ignore[arg-type]
        move(model, 0.05)
    actor = Actor(model, torch.float32, PAD_ID)
    actor.prove(chat_rows(2), pairs=True)
    assert actor.flat and actor.share_prompts
    actor.act(temperature=temperature, entropy=entropy)
    return actor


def moved_from_reference(actor: Actor) -> Reference:
    """What the actor was, which it then is no longer."""
    reference = reference_of(actor)
    move(actor.model)
    return reference


def give_value(actor: Actor, adapter: str | None = None) -> None:
    """A value function whose head is not 0."""
    value = Value(actor.causal.config.get_text_config().hidden_size, adapter)
    move(value, 0.1)
    actor.act(temperature=actor.temperature, entropy=actor.entropy, value=value)


@torch.no_grad()
def looked_at(actor: Actor, reference: Reference | None, rows: Sequence[Sampled]) -> list[Sampled]:
    """With the log-probabilities and values of the models as they are now."""
    batch = actor.eval().batch(rows)
    output = actor(batch)
    given = {"old": output[:, 0], "values": output[:, 2]}
    if reference is not None:
        given["reference"] = reference(batch)
    parts = {name: values.split(batch.counts.tolist()) for name, values in given.items()}
    return [
        replace(row, **{name: part[i].numpy().copy() for name, part in parts.items()}) for i, row in enumerate(rows)
    ]


def older(rows: Sequence[Sampled], std: float) -> list[Sampled]:
    """As if another policy had written them, with log-probabilities that far from now."""
    random, found = np.random.default_rng(1), []
    for row in rows:
        assert row.old is not None
        found.append(replace(row, old=row.old + (std * random.normal(size=len(row.old))).astype(np.float32)))
    return found


def without(rows: Sequence[Sampled], *names: str) -> list[Sampled]:
    nothing: dict[str, Any] = dict.fromkeys(names)
    return [replace(row, **nothing) for row in rows]


def online_step(
    actor: Actor, objective: Objective, micro_batches: Sequence[Sequence[Sampled]]
) -> tuple[StepResult, dict[str, Tensor]]:
    """One step's result and the gradients of policy and value function; `.grad` are cleared before and after."""
    actor.train().zero_grad()
    result = backward(actor, objective, [actor.batch(rows) for rows in micro_batches], Engine())
    found = gradients(actor.model)
    if actor.acting and actor.value is not None:
        found |= {f"value.{name}": gradient for name, gradient in gradients(actor.value).items()}
    actor.zero_grad()
    return result, found
