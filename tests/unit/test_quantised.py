"""Quantised bases: right gradients after an evaluation, examples that do not see each other, weights that are those."""

import sys
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from tiny import CPU, chat_rows, relative_difference, step_gradients, tiny_model, tiny_policy, worst_tensor
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
)

from tunekit.errors import MissingEnvironment, RecipeError
from tunekit.models import quantised
from tunekit.models.adapters import add_lora, trained_parameters
from tunekit.models.load import Location, load_model, locate
from tunekit.models.lora import Fused, as_trained
from tunekit.models.policy import Policy
from tunekit.train.optim import make_optimizer

BITS = pytest.mark.parametrize("bits", ["4bit", "8bit"])


def base(bits: str, dtype: torch.dtype = torch.float32, arch: str = "llama") -> PreTrainedModel:
    model = load_model(locate(f"tiny-random/{arch}"), dtype=dtype, device=CPU, quantization=bits)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def adapted(model: PreTrainedModel, r: int = 4, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    return add_lora(model, r=r, alpha=8.0, dropout=0.0, target_modules="all-linear", init_lora_weights=False, **options)


def dequantised(layer: Any) -> Tensor:
    """By bitsandbytes in 4 bits, and by the definition in 8: codes of -127 to 127, one scale an output."""
    if isinstance(layer.weight, torch.Tensor) and hasattr(layer.weight, "quant_state"):
        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer.state.CB.float() * layer.state.SCB[:, None] / 127


def without_guard(policy: Policy) -> None:
    for layer in quantised.layers_of(policy.model):
        layer.support_avx512bf16_for_cpu = True  # type: ignore[assignment]


@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_gradients_before_and_after_an_evaluation_are_identical(bits: str, dtype: torch.dtype, arch: str) -> None:
    policy = Policy(adapted(base(bits, dtype, arch)), dtype, 256)  # not proven yet: that is an evaluation
    before, gradients = step_gradients(policy, [chat_rows(2)])
    policy.eval()
    with torch.no_grad():
        policy(policy.batch(chat_rows(3)))
        policy(policy.batch(chat_rows(1)))
    after, again = step_gradients(policy, [chat_rows(2)])
    assert before.loss == after.loss
    assert gradients.keys() == again.keys() and len(gradients) > 8
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)


def test_without_the_guard_they_are_not() -> None:
    """What bitsandbytes does on its own; the guard can go when this test fails."""
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("only processors with AVX512-BF16 have the kernel without a derivative: nothing to guard here")
    policy = Policy(adapted(base("4bit")), torch.float32, 256)
    without_guard(policy)
    _, gradients = step_gradients(policy, [chat_rows(2)])
    policy.eval()
    with torch.no_grad():
        policy(policy.batch(chat_rows(2)))
    _, again = step_gradients(policy, [chat_rows(2)])
    assert worst_tensor(again, gradients) > 0.1


@BITS
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_loss_and_gradients_are_those_of_a_whole_model_with_the_dequantised_weights(bits: str, arch: str) -> None:
    small = base(bits, arch=arch)
    whole = tiny_model(arch)
    for name, layer in small.named_modules():
        if quantised._bits(layer):
            own, weight = whole.get_submodule(name), dequantised(layer)
            own.weight.data = weight if isinstance(own, nn.Linear) else weight.T.contiguous()
    ours, theirs = (tiny_policy(adapted(model)) for model in (small, whole))
    result, gradients = step_gradients(ours, [chat_rows(3)])
    expected, wanted = step_gradients(theirs, [chat_rows(3)])
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert relative_difference(gradients, wanted) < 1e-5


@pytest.mark.parametrize(("bits", "least", "most"), [("4bit", 0.05, 0.12), ("8bit", 0.003, 0.012)])
def test_the_weights_are_those_of_the_model_up_to_their_precision(bits: str, least: float, most: float) -> None:
    whole = dict(tiny_model("llama").named_modules())
    for name, layer in base(bits).named_modules():
        if quantised._bits(layer):
            full = whole[name].weight.detach()
            error = float((dequantised(layer) - full).norm() / full.norm())
            assert least < error < most, name


@BITS
def test_what_is_evaluated_is_what_is_trained_bit_for_bit(bits: str) -> None:
    policy = tiny_policy(adapted(base(bits, torch.bfloat16)), torch.bfloat16)
    batch = policy.batch(chat_rows(3))
    with torch.no_grad(), as_trained(policy.model):
        assert torch.equal(policy.train()(batch), policy.eval()(batch))
    with torch.no_grad(), policy.model.disable_adapter():  # the reference of dpo
        assert torch.equal(policy.train()(batch), policy.eval()(batch))


@BITS
def test_packed_rows_are_isolated_and_stay_flat(bits: str) -> None:
    policy = tiny_policy(adapted(base(bits, torch.bfloat16)), torch.bfloat16)
    assert policy.flat and policy.chunked_head


def test_an_outlier_beside_it_does_not_change_an_example() -> None:
    """In bitsandbytes' own evaluation it does: the column of the outlier is taken out of the product for all rows."""
    layer: Any = quantised.layers_of(base("8bit"))[0]
    torch.manual_seed(0)
    quiet = torch.randn(2, 64)
    loud = quiet.clone()
    loud[1, 5] = 50.0
    assert torch.equal(layer(quiet)[0], layer(loud)[0])
    theirs = type(layer).forward
    assert not torch.equal(theirs(layer, quiet)[0], theirs(layer, loud)[0])


@BITS
def test_head_and_embeddings_stay_and_all_weights_are_counted(bits: str) -> None:
    model = base(bits, torch.bfloat16)
    assert quantised.quantization_of(model) == bits and quantised.quantization_of(adapted(model)) == bits
    assert type(model.get_output_embeddings()) is nn.Linear
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16 == model.dtype
    whole = adapted(tiny_model("llama"))
    assert sum(isinstance(module, Fused) for module in adapted(base(bits)).modules()) == 14
    assert len(quantised.layers_of(model)) == 14 and quantised.layers_of(whole) == []
    counts = [sum(map(quantised.num_weights, each.parameters())) for each in (adapted(base(bits)), whole)]
    assert counts[0] == counts[1]


@BITS
def test_trained_weights_are_fp32_and_only_those_of_the_adapter(bits: str) -> None:
    trained = trained_parameters(adapted(base(bits, torch.bfloat16)))
    assert len(trained) == 28 and all(".lora_" in name for name in trained)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit"])
def test_the_loss_falls_with_8_bit_and_paged_optimizers(optim: str) -> None:
    policy = tiny_policy(adapted(base("4bit"), r=64))
    parameters = trained_parameters(policy)
    optimizer = make_optimizer(optim, parameters, lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(4):
        result, gradients = step_gradients(policy, [chat_rows(2)])
        losses.append(result.loss)
        for name, parameter in policy.model.named_parameters():
            parameter.grad = gradients.get(name)
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05 and losses == sorted(losses, reverse=True)
    states = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]
    assert any(value.dtype == torch.uint8 for value in states) == ("8bit" in optim)


def test_dora_and_modules_trained_whole_work_beside_it() -> None:
    model = adapted(base("4bit", torch.bfloat16), use_dora=True, modules_to_save=["lm_head"])
    policy = tiny_policy(model, torch.bfloat16)
    _, gradients = step_gradients(policy, [chat_rows(2)])
    assert any("lm_head" in name for name in gradients) and any("magnitude" in name for name in gradients)


def test_a_new_head_and_an_encoders_pooler_stay_whole(tmp_path: Any) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=1, **sizes)).save_pretrained(tmp_path)
    model = load_model(
        Location("bert", str(tmp_path)),
        dtype=torch.float32,
        device=CPU,
        quantization="4bit",
        auto_class=AutoModelForSequenceClassification,
    )
    assert type(model.classifier) is nn.Linear and type(model.bert.pooler.dense) is nn.Linear
    assert len(quantised.layers_of(model)) == 6


def test_a_model_that_reads_the_weights_of_its_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"tiny-random/mamba does not run with quantised layers") as caught:
        base("4bit", arch="mamba")
    assert "model.quantization: none" in caught.value.fix


def test_a_checkpoint_that_is_quantised_already_is_refused() -> None:
    config = LlamaConfig(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(RecipeError, match="org/m-bnb is stored in 4bit by bitsandbytes"):
        quantised.refuse_stored(config, "org/m-bnb")
    quantised.refuse_stored(LlamaConfig(), "org/m")


def test_a_device_without_products_and_a_missing_library_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingEnvironment, match="4bit: bitsandbytes has no products for mps") as caught:
        quantised.options("4bit", torch.float32, torch.device("mps"))
    assert caught.value.exit_code == 7
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(MissingEnvironment, match="bitsandbytes cannot be loaded") as caught:
        base("8bit")
    assert "pip install bitsandbytes" in caught.value.fix
