"""Untrained two-layer models of any causal architecture in transformers, with byte tokens: for tests and dry runs.

Equal for equal versions of tunekit, torch and transformers. The weights are spread so that the next-token distribution
is neither flat nor one token; the tokenizer has no merges, so a token is a byte or one of the three ChatML marks.
"""

import difflib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunekit.errors import RecipeError

VERSION = 1  # part of the cached folder's name: raise it with every change to what this file builds
SEED = 0
WIDTH, HEADS, CONTEXT_LENGTH = 64, 4, 2048
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD, BOS, EOS = 256, 257, 258
MAX_PARAMETERS = 20_000_000

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# transformers has one meaning under several names; an architecture takes those that its config declares.
SIZES: dict[str, Any] = {
    "vocab_size": 256 + len(MARKS),
    "vocab_size_per_layer_input": 256 + len(MARKS),
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "ffn_hidden_size": 2 * WIDTH,
    "ffn_dim": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "num_kv_heads": HEADS // 2,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": CONTEXT_LENGTH,
    "initializer_range": 1 / math.sqrt(WIDTH),
    "init_std": 1 / math.sqrt(WIDTH),
    "logit_scale": 1.0,
    "moe_intermediate_size": WIDTH // 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "is_decoder": True,
}
# What data and tokenizer of a real model depend on, and what changes the way its logits are computed.
KEPT: tuple[str, ...] = (
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "max_position_embeddings",
    "tie_word_embeddings",
)
KEPT += ("final_logit_softcapping", "attn_logit_softcapping", "sliding_window")
LATENT_ATTENTION = {"num_key_value_heads": HEADS, "q_lora_rank": 32, "kv_lora_rank": 32, "n_group": 2, "topk_group": 1}
LATENT_ATTENTION |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "head_dim": 8}
SPECIAL: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": LATENT_ATTENTION,
    "deepseek_v3": LATENT_ATTENTION,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
}


def check_arch(arch: str) -> None:
    """Raises RecipeError, with the nearest names, unless `arch` is the `model_type` of a causal language model."""
    if arch in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    near = difflib.get_close_matches(arch, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=5, cutoff=0.5)
    raise RecipeError(
        f"model: tiny-random/{arch}: transformers has no causal language model of the type {arch!r}",
        f"Near: {', '.join(near)}." if near else "After the slash stands a `model_type`, such as llama, qwen3 or gpt2.",
    )


def build(arch: str, folder: Path) -> None:
    """Writes config, seeded fp32 weights, generation config and tokenizer; reseeds the global torch generator.

    Raises RecipeError when transformers cannot make a working small model of this type.
    """
    model = _made(arch, lambda: _model(arch))
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def shrunk(config: PretrainedConfig) -> PreTrainedModel:
    """A small random model of the architecture of `config`, with its vocabulary, context and special tokens.

    Raises RecipeError when transformers cannot make a working one.
    """
    text = config.get_text_config()
    kept = {key: getattr(text, key) for key in KEPT if getattr(text, key, None) is not None}
    kept["vocab_size_per_layer_input"] = text.vocab_size
    return _made(text.model_type, lambda: _model(text.model_type, **kept))


def _made(arch: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    try:
        return make()
    except Exception as error:  # each of the 190 architectures refuses a size it cannot have in a way of its own
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[-1].strip()
        raise RecipeError(
            f"model: tiny-random/{arch}: no small model of this type can be made: {reason}",
            "Take a text-only decoder type, such as llama, qwen3, gemma3_text, gpt2 or mamba.",
        ) from error


def _model(arch: str, **kept: Any) -> PreTrainedModel:
    config = _config(arch, kept)
    with torch.device("meta"):
        num_parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    if num_parameters > MAX_PARAMETERS + 2 * WIDTH * kept.get(
        "vocab_size", 0
    ):  # a multimodal type keeps its sizes in nested configs
        raise ValueError(f"it would have {num_parameters:,} parameters")
    torch.manual_seed(SEED)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(16)[None]).logits  # (1, 16, V)
    if not logits.isfinite().all():
        raise ValueError("its logits are not finite")
    return model


def _config(arch: str, kept: dict[str, Any]) -> PretrainedConfig:
    config_class = CONFIG_MAPPING[arch]
    declared = set(inspect.signature(config_class).parameters) | set(config_class.attribute_map)
    sizes = {key: value for key, value in (SIZES | kept).items() if key in declared} | SPECIAL.get(arch, {})
    config: PretrainedConfig = AutoConfig.for_model(arch, **sizes)
    if "layer_types" in declared and set(config.layer_types or ()) == {"linear_attention"}:
        config.layer_types = [*config.layer_types[:-1], "full_attention"]  # else a hybrid's first comes too late
    return config


def tokenizer() -> PreTrainedTokenizerFast:
    """256 byte tokens, `<|endoftext|>` (padding), `<|im_start|>`, `<|im_end|>` (end of turn), and a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(list(MARKS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level,
        pad_token=MARKS[0],
        bos_token=MARKS[1],
        eos_token=MARKS[2],
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
