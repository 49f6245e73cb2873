"""One step and twenty steps are those of TRL's SFTTrainer on the same rows in the same order."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_steps import ACCUMULATION, BATCH, CLIP, DECAY, RATE, ROWS, STEPS, WARMUP, our_loop
from tiny import (
    chat_rows,
    gradients,
    plain_model,
    relative_difference,
    step_gradients,
    tiny_model,
    tiny_policy,
    worst_tensor,
)
from torch import nn
from trl import SFTConfig, SFTTrainer

from tunekit.models.adapters import add_lora
from tunekit.models.load import load_tokenizer, locate


def trainer(model: nn.Module, folder: Path, rows: list) -> SFTTrainer:
    data = [
        {
            "input_ids": row.ids.tolist(),
            "labels": [int(i) if t else -100 for i, t in zip(row.ids, row.trained, strict=True)],
        }
        for row in rows
    ]
    config = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=STEPS,
        learning_rate=RATE,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        train_sampling_strategy="sequential",
        optim="adamw_torch",
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    tokenizer = load_tokenizer(locate("tiny-random/llama"))
    return SFTTrainer(model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_one_step_equals_trl(tmp_path: Path, lora: bool) -> None:
    rows = chat_rows(8)
    ours, theirs = tiny_model("llama"), plain_model("llama")
    if lora:
        ours = add_lora(ours, r=4, alpha=12.0, dropout=0.0, target_modules="all-linear")
        theirs = get_peft_model(
            theirs, LoraConfig(r=4, lora_alpha=12.0, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        theirs.load_state_dict(ours.state_dict())
    sft = trainer(theirs, tmp_path, rows)
    inputs = sft.data_collator([sft.train_dataset[i] for i in range(len(rows))])
    loss = sft.compute_loss(sft.model.train(), inputs)
    loss.backward()
    result, found = step_gradients(tiny_policy(ours), [rows[:3], rows[3:]])
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert worst_tensor(found, gradients(sft.model)) < 1e-5


def test_twenty_steps_equal_trl(tmp_path: Path) -> None:
    sft = trainer(plain_model("llama"), tmp_path / "trl", ROWS)
    sft.train()
    theirs = [row for row in sft.state.log_history if "loss" in row]
    ours, weights = our_loop(tmp_path)
    assert len(theirs) == STEPS
    assert [row["lr"] for row in ours] == pytest.approx([row["learning_rate"] for row in theirs], rel=1e-9)
    assert [row["loss"] for row in ours] == pytest.approx([float(row["loss"]) for row in theirs], rel=1e-4)
    assert [row["grad_norm"] for row in ours] == pytest.approx([float(row["grad_norm"]) for row in theirs], rel=1e-4)
    expected = {name: p.detach() for name, p in sft.model.named_parameters()}
    assert all(value.dtype == torch.float32 for value in expected.values())
    assert relative_difference(weights, expected) < 1e-5
