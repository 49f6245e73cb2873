"""Loss and gradients of one step are transformers' own, on the same rows, for every architecture and way to train."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import (
    ARCHS,
    CPU,
    OWN_HEAD,
    PAD_ID,
    PADDED,
    chat_rows,
    gradients,
    plain_model,
    step_gradients,
    tiny_model,
    tiny_policy,
    worst_tensor,
)
from torch import Tensor, nn

from tunekit.data.batch import padded_batch
from tunekit.data.rows import Tokens
from tunekit.models.adapters import add_lora

RELATIVE = 1e-5


def labels_of(rows: Sequence[Tokens]) -> dict[str, Tensor]:
    """What a user of transformers alone would hand to the model: padded rows, -100 where nothing is trained."""
    batch = padded_batch(rows, PAD_ID)
    labels = torch.full_like(batch.input_ids, -100)
    for i, row in enumerate(rows):
        labels[i, : len(row.ids)] = torch.where(torch.from_numpy(row.trained), torch.from_numpy(row.ids).long(), -100)
    assert batch.attention_mask is not None
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}


def reference(model: nn.Module, rows: Sequence[Tokens]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**labels_of(rows)).loss
    loss.backward()
    return loss.item(), gradients(model)


def spread(model: nn.Module) -> None:
    """Moves the trained weights off their start: LoRA's B is zero there, and so is half of the gradient."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += (
                    0.1
                    * parameter.std().nan_to_num(0.0).clamp(0.1)
                    * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                )


def assert_equal_step(ours: nn.Module, theirs: nn.Module) -> Any:
    """Compares one step in two micro-batches with one pass of transformers over all rows; returns our policy."""
    slow = ours.config.model_type == "mamba"  # its scan is a Python loop without its kernels
    rows = chat_rows(3 if slow else 8)
    policy = tiny_policy(ours)
    result, found = step_gradients(policy, [rows[:2], rows[2:]])
    loss, expected = reference(theirs, rows)
    assert result.loss == pytest.approx(loss, rel=RELATIVE)
    assert worst_tensor(found, expected) < RELATIVE
    return policy


@pytest.mark.parametrize("arch", [*ARCHS, "phi", "mixtral"])
def test_full_fine_tuning_equals_transformers(arch: str) -> None:
    ours, theirs = tiny_model(arch, **ARCHS.get(arch, {})), plain_model(arch, **ARCHS.get(arch, {}))
    policy = assert_equal_step(ours, theirs)
    # That the fast paths were taken, and not the fallbacks, which are right by construction.
    assert policy.flat == (arch not in PADDED)
    assert policy.chunked_head == (arch not in (*OWN_HEAD, "phi"))


@pytest.mark.parametrize("arch", ARCHS)
def test_lora_equals_peft_on_transformers(arch: str) -> None:
    # peft refuses LoRA on Mamba's out_proj, which the architecture reads past its module.
    assert_equal_lora(arch, {"target_modules": ["in_proj", "x_proj"]} if arch == "mamba" else {})


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "norm"]},
        {"use_dora": True},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["v_proj", "lm_head"]},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda options: "-".join(options) + str(next(iter(options.values()))),
)
def test_variants_of_lora_equal_peft_on_transformers(options: dict[str, Any]) -> None:
    assert_equal_lora("llama", options)


def assert_equal_lora(arch: str, options: dict[str, Any]) -> None:
    options = {"target_modules": "all-linear", **options}
    ours = add_lora(tiny_model(arch, **ARCHS[arch]), r=4, alpha=12.0, dropout=0.0, **options)
    config = LoraConfig(r=4, lora_alpha=12.0, lora_dropout=0.0, task_type="CAUSAL_LM", **options)
    theirs = get_peft_model(plain_model(arch, **ARCHS[arch]), config)
    spread(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_equal_step(ours, theirs.train())


def test_a_head_with_a_bias_trains_its_bias() -> None:
    policy = tiny_policy(tiny_model("phi"))
    _, found = step_gradients(policy, [chat_rows(4)])
    assert float(found["lm_head.bias"].norm()) > 0


@pytest.mark.parametrize("arch", [*OWN_HEAD, "phi"])
def test_a_head_that_is_more_than_a_product_is_known_also_where_rounding_hides_it(arch: str) -> None:
    assert not tiny_policy(tiny_model(arch, torch.bfloat16), torch.bfloat16).chunked_head


def test_the_windows_of_the_matrix_are_felt() -> None:
    rows = chat_rows(4)
    narrow, _ = reference(plain_model("mistral", **ARCHS["mistral"]), rows)
    wide, _ = reference(plain_model("mistral", sliding_window=None), rows)
    assert abs(narrow - wide) > 1e-3


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}], ids=str)
def test_lora_on_a_bfloat16_base_is_within_rounding_of_peft(options: dict[str, Any]) -> None:
    """peft multiplies in fp32 beside a bf16 base: the two agree to bf16's 3 digits, not to fp32's."""
    options = {"target_modules": "all-linear", **options}
    ours = add_lora(tiny_model("llama", torch.bfloat16), r=4, alpha=12.0, dropout=0.0, **options)
    config = LoraConfig(r=4, lora_alpha=12.0, task_type="CAUSAL_LM", **options)
    theirs = get_peft_model(plain_model("llama"), config)
    spread(ours)
    theirs.load_state_dict({name: value.float() for name, value in ours.state_dict().items()}, strict=True)
    rows = chat_rows(8)
    result, found = step_gradients(tiny_policy(ours, torch.bfloat16), [rows])
    loss, expected = reference(theirs.train(), rows)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert result.loss == pytest.approx(loss, rel=5e-3)
    assert worst_tensor(found, expected) < 0.05


def test_full_fine_tuning_in_bfloat16_keeps_fp32_weights_and_is_within_rounding() -> None:
    rows = chat_rows(8)
    ours = tiny_model("llama")
    result, found = step_gradients(tiny_policy(ours, torch.bfloat16), [rows[:3], rows[3:]])
    loss, expected = reference(plain_model("llama"), rows)
    assert all(p.dtype == torch.float32 and p.device == CPU for p in ours.parameters())
    assert result.loss == pytest.approx(loss, rel=5e-3)
    assert worst_tensor(found, expected) < 0.05
    assert worst_tensor(found, expected) > 1e-4  # bf16 it was
