"""What a run needs in memory, from the model's config and the rows alone: nothing is downloaded and no weight is made.

The step itself is run on tensors without data (see models/meter.py); what lies beside it is counted. Bytes throughout.
"""

import copy
import ctypes
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode, UnsupportedOperatorException
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from tunekit.data.rows import Example
from tunekit.models import adapters
from tunekit.models.actor import Actor, Value
from tunekit.models.attention import SEGMENTS
from tunekit.models.meter import Meter, without_data
from tunekit.models.policy import Policy
from tunekit.models.scorer import Scorer

# Bytes an optimizer keeps for each trained weight, by a part of its name; AdamW in fp32 has two states of four.
STATE_BYTES = {"ademamix_8bit": 3, "ademamix": 12, "lion_8bit": 1, "8bit": 2, "lion": 4}
STATE_BYTES |= {"adafactor": 0, "sgd": 0, "adagrad": 4, "rmsprop": 4}
QUANTISED_FROM = 4096  # weights; bitsandbytes keeps the states of smaller tensors in fp32
BLOCK_BYTES = 4 / 256  # of a state of 8 bits: a scale for each block
# Bytes a weight of a linear layer of the base: NF4 with double quantisation, int8 with a scale for each row.
QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
ROOM = 64  # columns of keys and values that are made beforehand (see models/key_values.py)
DRAWN_BYTES = 32  # of each logit while a token is drawn: fp32 logits and three of their kind, fp64 sums
LARGE = 2**20  # bytes from which a tensor is given back to the system when it goes


@dataclass(frozen=True)
class Setup:
    """What is trained, as plain arguments.

    kind: policy, scorer (a reward model) or actor (online training);  dtype: of products and of a frozen base
    lora, freeze: arguments of `adapters`, None without;  value: of ppo: head, adapter or model
    """

    config: PretrainedConfig
    dtype: torch.dtype
    kind: str = "policy"
    lora: dict[str, Any] | None = None
    freeze: dict[str, Any] | None = None
    optim: str = "adamw_torch"
    quantization: str = "none"
    checkpointing: bool = False
    attention: str = "auto"
    value: str | None = None
    entropy: bool = False
    pad_id: int = 0


@dataclass(frozen=True)
class Step:
    """One pass over a micro-batch beside weights and optimizer: gradients, all else at its peak, operations.

    logits: of that, the chunk of them;  traced: False where the model's code asks for data, and a formula stands in
    """

    gradients: int
    activations: int
    logits: int
    flops: int
    traced: bool = True


def build(setup: Setup) -> Any:
    """The model on the meta device, with what is trained in it. Raises `RecipeError` where the adapter does not fit."""
    auto: Any = AutoModelForSequenceClassification if setup.kind == "scorer" else AutoModelForCausalLM
    config, dtype = copy.deepcopy(setup.config), setup.dtype if setup.lora else torch.float32
    if setup.kind == "scorer":
        config.num_labels, config.pad_token_id = 1, setup.pad_id
    attention: dict[str, Any] = {"attn_implementation": SEGMENTS if setup.attention == "auto" else setup.attention}
    with torch.device("meta"):
        try:
            model = auto.from_config(config, dtype=dtype, **attention)
        except (ValueError, ImportError, KeyError):
            config._attn_implementation_internal = None  # what it takes by itself
            model = auto.from_config(config, dtype=dtype)
        if setup.lora:
            task = "SEQ_CLS" if setup.kind == "scorer" else "CAUSAL_LM"
            return adapters.add_lora(model, **setup.lora, task_type=task)
    if setup.freeze:
        adapters.freeze(model, **setup.freeze)
    return model


def weight_bytes(model: nn.Module, quantization: str = "none") -> int:
    """Of all parameters, those of the linear layers of a base in `quantization`."""
    share = QUANTISED.get(quantization)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {
        id(module.weight)
        for name, module in model.named_modules()
        if share and isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    }
    return int(
        sum(
            each.numel() * (share if share and id(each) in linear else each.element_size())
            for each in model.parameters()
        )
    )


def largest_product(model: nn.Module) -> int:
    """Weights of the largest linear layer, which a quantised base dequantises for its product."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return max(
        (
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
        ),
        default=0,
    )


def gathered_bytes(model: nn.Module, layers: int) -> int:
    """What of divided weights a process has whole in a step: all outside its `layers`, two layers of those.

    The second is fetched while the first one is at work.
    """
    stacks = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == layers]
    each = [_bytes_of(layer.parameters()) for stack in stacks for layer in stack]
    return _bytes_of(model.parameters()) - sum(each) + 2 * max(each, default=0)


def _bytes_of(parameters: Iterable[nn.Parameter]) -> int:
    return sum(each.numel() * each.element_size() for each in parameters)


def state_bytes(optim: str, parameters: Sequence[nn.Parameter]) -> int:
    """Of the optimizer's states."""
    name, size = next(((part, size) for part, size in STATE_BYTES.items() if part in optim), ("", 8))
    count = sum(each.numel() for each in parameters)
    if "8bit" not in name:
        return size * count
    small = sum(each.numel() for each in parameters if each.numel() < QUANTISED_FROM)
    return int((count - small) * size * (1 + BLOCK_BYTES)) + 4 * size * small


def traced(setup: Setup, rows: Sequence[Example], *, backward: bool = True, passes: int = 1) -> Step:
    """What `passes` over the micro-batch `rows` take, one after another with their gradients added up."""
    policy, mode = _policy(setup)
    trained = [each for each in policy.parameters() if each.requires_grad]
    if not policy.flat:
        policy.causal.set_attn_implementation("sdpa" if policy.causal._supports_sdpa else "eager")
    vocabulary = setup.config.get_text_config().vocab_size
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what cannot be traced is no error
    try:
        peak, flops = _run(policy, mode, rows, backward, passes)
    except (NotImplementedError, TypeError):  # not on a flat row
        policy, mode = _policy(setup)
        policy.flat = False
        policy.causal.set_attn_implementation("sdpa" if policy.causal._supports_sdpa else "eager")
        peak, flops = _run(policy, mode, rows, backward, passes)
    except (DynamicOutputShapeException, UnsupportedOperatorException, RuntimeError):
        return _by_formula(setup, rows, trained, backward, passes)
    gradients = sum(each.numel() * each.element_size() for each in trained) if backward else 0
    scored = sum(int(answer.trained.sum()) for row in rows for answer in row.answers)
    chunk = 3 * 4 * min(256, scored) * vocabulary if policy.chunked_head else 8 * scored * vocabulary
    logits = 0 if setup.kind == "scorer" else chunk
    return Step(gradients, max(0, peak - gradients), logits, flops)


def _policy(setup: Setup) -> tuple[Policy, FakeTensorMode]:
    mode, model = FakeTensorMode(allow_non_fake_inputs=True), build(setup)
    without_data(model, mode)
    kind = {"policy": Policy, "scorer": Scorer, "actor": Actor}[setup.kind]
    with mode:
        policy = kind(model, setup.dtype, setup.pad_id)
        if isinstance(policy, Actor):
            policy.act(temperature=1.0, entropy=setup.entropy)
            policy.value = _value(setup, mode)
        if setup.checkpointing:
            policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
    return policy.train(), mode


def _value(setup: Setup, mode: FakeTensorMode) -> Value | None:
    """What estimates the return; an adapter of its own takes what the policy's does, and is traced as a model."""
    if setup.value is None:
        return None
    with torch.device("meta"):
        value = Value(setup.config.get_text_config().hidden_size)
    if setup.value != "head":
        other = build(setup)
        value.model = (other.get_base_model() if setup.lora else other).base_model
    without_data(value, mode)
    return value


def _run(policy: Policy, mode: FakeTensorMode, rows: Sequence[Example], backward: bool, passes: int) -> tuple[int, int]:
    """Bytes at the peak beside the weights, and operations of one pass."""
    meter = Meter()
    for each in [*policy.parameters(), *policy.buffers()]:
        meter.see(each)
    weights = meter.now
    with mode, meter:
        for _ in range(passes):
            batch = policy.batch(rows)
            if backward:
                policy(batch).sum().backward()
            else:
                policy.eval()
                with torch.no_grad():
                    policy(batch)
    return meter.peak - weights, meter.flops // passes


def _by_formula(
    setup: Setup, rows: Sequence[Example], trained: Sequence[nn.Parameter], backward: bool, passes: int
) -> Step:
    """34 bytes of each hidden value of a layer in 16 bits (Korthikanti et al. 2022, arXiv:2205.05198, equation 1, with

    an attention that keeps no scores), 6 operations a weight and token, 8 with recomputation.
    """
    text = setup.config.get_text_config()
    tokens = sum(len(answer.ids) for row in rows for answer in row.answers)
    width, layers = text.hidden_size, text.num_hidden_layers
    kept = 2 if setup.checkpointing else 34 * setup.dtype.itemsize // 2
    activations = tokens * width * (kept * layers + 34) if backward else 34 * tokens * width
    gradients = sum(each.numel() * each.element_size() for each in trained) if backward else 0
    weights = sum(each.numel() for each in build(setup).parameters())
    flops = (8 if setup.checkpointing else 6) * weights * tokens if backward else 2 * weights * tokens
    return Step(gradients, activations, 12 * 256 * text.vocab_size, flops, traced=False)


def cache_bytes(config: PretrainedConfig, dtype: torch.dtype, answers: int, prompt: int, new: int) -> int:
    """Keys and values of `answers` written together, each after `prompt` tokens, and the logits of one token each."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    columns = prompt + ROOM
    while columns < prompt + new:
        columns *= 2
    layer = answers * heads * columns * width * dtype.itemsize
    return 2 * layer * text.num_hidden_layers + layer + answers * text.vocab_size * DRAWN_BYTES


def give_back_what_goes() -> bool:
    """Tells the C library to give tensors of 1 MiB and more back at once; False where it is another than glibc.

    By itself it raises that bound to 32 MiB, keeps what lies between and fills the holes badly: a run then holds up to
    half more than its tensors.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    m_mmap_threshold, m_trim_threshold = -3, -1
    return bool(mallopt(m_mmap_threshold, LARGE) and mallopt(m_trim_threshold, LARGE))


def resident() -> int:
    """What this process holds now: interpreter, libraries, rows."""
    return int(psutil.Process().memory_info().rss)


def available(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
