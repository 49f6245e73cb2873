"""Twenty optimizer steps are those of a plain torch loop on transformers' own loss: losses, norms, rates, weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CPU, PAD_ID, chat_rows, plain_model, relative_difference, tiny_model, tiny_policy
from torch import Tensor, nn
from transformers import get_scheduler

from tunekit.data.batch import padded_batch
from tunekit.data.loader import PlannedLoader
from tunekit.data.plan import Plan
from tunekit.objectives.sft import SFT
from tunekit.train.engine import Engine
from tunekit.train.loop import train
from tunekit.train.optim import make_optimizer, make_schedule
from tunekit.train.report import MetricsFile, read_metrics
from tunekit.train.signals import StopRequest
from tunekit.train.training import Schedule, Training

STEPS, BATCH, ACCUMULATION, RATE, WARMUP, DECAY, CLIP = 20, 2, 2, 3e-3, 3, 0.1, 1.0
ROWS = chat_rows(22)  # 11 micro-batches an epoch: its last step has one instead of two


def our_loop(folder: Path, scheduler: str = "cosine") -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The rows of metrics.jsonl and the final weights of tunekit's loop."""
    policy = tiny_policy(tiny_model("llama"))
    plan = Plan(tuple(len(row.ids) for row in ROWS), BATCH, ACCUMULATION, 99.0, STEPS, seed=1, sampling="sequential")
    parameters = dict(policy.model.named_parameters())
    optimizer = make_optimizer("adamw_torch", parameters, lr=RATE, weight_decay=DECAY)
    run = Training(
        policy=policy,
        objective=SFT,
        loader=PlannedLoader(ROWS, plan),
        parameters=parameters,
        optimizer=optimizer,
        learning_rate=make_schedule(scheduler, optimizer, warmup_steps=WARMUP, num_steps=STEPS),
        max_grad_norm=CLIP,
        engine=Engine(),
        evaluate=lambda poll: {},
        schedule=Schedule(1000, 1, None, "eval_loss", False, None, 1),
        metrics=MetricsFile(folder / "metrics.jsonl"),
        checkpoints=folder / "checkpoints",
        contract={},
    )
    train(run, StopRequest())
    return read_metrics(run.metrics.path), {name: p.detach() for name, p in parameters.items()}


def plain_loop() -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """What one would write on transformers and torch alone, with the whole step in one padded batch."""
    model = plain_model("llama")
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    log = []
    size = BATCH * ACCUMULATION
    starts = [start for _ in range(STEPS) for start in range(0, len(ROWS), size)]
    for start in starts[:STEPS]:
        rows = ROWS[start : start + size]
        batch = padded_batch(rows, PAD_ID).to(CPU)
        assert batch.attention_mask is not None
        labels = torch.full_like(batch.input_ids, -100).flatten()
        labels[batch.predictors + 1] = batch.targets
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        loss = model(**inputs, labels=labels.view_as(batch.input_ids)).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        log.append({"loss": loss.item(), "grad_norm": norm.item(), "lr": scheduler.get_last_lr()[0]})
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return log, {name: p.detach() for name, p in model.named_parameters()}


def test_twenty_steps_equal_a_plain_torch_loop(tmp_path: Path) -> None:
    ours, weights = our_loop(tmp_path)
    theirs, expected = plain_loop()
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    assert [row["lr"] for row in ours] == [row["lr"] for row in theirs]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in ours] == pytest.approx([row[key] for row in theirs], rel=1e-5)
    assert max(row["grad_norm"] for row in ours) > CLIP  # clipping took part
    assert relative_difference(weights, expected) < 1e-5
    start = dict(plain_model("llama").named_parameters())
    assert relative_difference(weights, {name: p.detach() for name, p in start.items()}) > 0.01  # and it trained


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_learning_rates_equal_those_of_transformers(name: str, warmup: int) -> None:
    rates = []
    for make in (make_schedule, None):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
        if make is not None:
            schedule = make(name, optimizer, warmup_steps=warmup, num_steps=STEPS)
        else:
            theirs = "constant_with_warmup" if name == "constant" else name
            schedule = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS)
        sequence = []
        for _ in range(STEPS):
            sequence.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append(sequence)
    assert rates[0] == rates[1]
    assert rates[0][warmup] == RATE and max(rates[0]) == RATE
