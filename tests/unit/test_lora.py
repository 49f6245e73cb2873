"""When the fused LoRA layer computes itself and when it leaves that to peft. Equality to peft: tests/parity."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from tiny import chat_rows, plain_model, tiny_model, tiny_policy
from torch import Tensor, nn

from tunekit.errors import RecipeError
from tunekit.models import lora
from tunekit.models.adapters import add_lora
from tunekit.models.lora import LoraLinear


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that the fused product computed."""
    shapes: list[tuple[int, ...]] = []
    real: Callable[..., Tensor] = lora._LoraProduct.apply

    class Counting:
        @staticmethod
        def apply(x: Tensor, *rest: Any) -> Tensor:
            shapes.append(tuple(x.shape))
            return real(x, *rest)

    monkeypatch.setattr(lora, "_LoraProduct", Counting)
    return shapes


def adapted(dropout: float = 0.0, dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    options = {"target_modules": "all-linear", **options}
    return add_lora(tiny_model("llama", dtype), r=4, alpha=8.0, dropout=dropout, **options).train()


def layer_of(model: PeftModel) -> LoraLinear:
    return next(module for module in model.modules() if isinstance(module, LoraLinear))


def test_training_takes_the_fused_product_in_every_layer(products: list[tuple[int, ...]]) -> None:
    policy = tiny_policy(adapted())
    products.clear()
    batch = policy.batch(chat_rows(2))
    policy(batch)
    assert [shape[:2] for shape in products] == [(1, batch.num_tokens)] * 14  # 7 linear layers in each of 2


@pytest.mark.parametrize("change", ["eval", "dropout", "dora", "disabled", "merged", "other dtype"])
def test_what_is_not_plain_lora_is_left_to_peft(products: list[tuple[int, ...]], change: str) -> None:
    model = adapted(dropout=0.1 if change == "dropout" else 0.0, use_dora=change == "dora")
    layer = layer_of(model)
    x = torch.randn(3, 64)
    if change == "eval":
        model.eval()
    if change == "merged":
        layer.merge()
    if change == "other dtype":
        layer, x = layer.to(torch.bfloat16), x.bfloat16()
        layer.base_layer.float()
        x = x.float().bfloat16()
    if change == "disabled":
        with model.disable_adapter():
            layer(x)
    elif change == "other dtype":
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
    else:
        layer(x)
    assert products == []


def test_eval_and_training_compute_the_same() -> None:
    layer = layer_of(adapted())
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(5, 64)
    trained = layer(x)
    torch.testing.assert_close(trained, layer.eval()(x), rtol=1e-5, atol=1e-5)
    layer.merge()
    torch.testing.assert_close(trained, layer(x), rtol=1e-4, atol=1e-4)


def test_names_shapes_and_start_are_those_of_peft() -> None:
    torch.manual_seed(1)
    ours = get_peft_model_state_dict(adapted())
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model_state_dict(get_peft_model(plain_model("llama"), config))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_an_untrained_adapter_changes_nothing() -> None:
    with torch.no_grad():
        ids = torch.arange(20)[None]
        torch.testing.assert_close(adapted()(ids).logits, tiny_model("llama")(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head", "norm"]}, {"use_dora": True}], ids=str)
def test_beside_a_bfloat16_base_all_that_is_trained_is_fp32(options: dict[str, Any]) -> None:
    model = adapted(dtype=torch.bfloat16, **options)
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert set(trained.values()) == {torch.float32} and frozen == {torch.bfloat16}
    assert all(any(name in key for key in trained) for name in options.get("modules_to_save", []))
    ids = torch.arange(20)[None]
    assert model(ids).logits.dtype == torch.bfloat16
    assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape == (1, 22)


def test_a_target_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match="adapter: ") as caught:
        adapted(target_modules=["query"])
    assert caught.value.fix.endswith(": down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj")


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe"])
def test_of_experts_all_is_trained_but_the_router(arch: str) -> None:
    model = add_lora(tiny_model(arch), r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(".experts." in name for name in trained) and any(".q_proj." in name for name in trained)
    assert not any(".gate." in name for name in trained)


def test_the_adapter_records_the_commit_of_its_base() -> None:
    model = tiny_model("llama")
    model.config._commit_hash = "0123abcd"
    adapted_model = add_lora(model, r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    assert adapted_model.peft_config["default"].revision == "0123abcd"
