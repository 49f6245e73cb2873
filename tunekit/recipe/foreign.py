"""The names that other tools have for keys and values: what they are called here, or why there is no such thing.

The one place behind the hints for what is wrong in a recipe and behind `tunekit convert`. A name is listed under the
tool whose own it is; that of a library below several tools, under the library.
"""

from __future__ import annotations

from typing import NamedTuple

from tunekit.recipe.gaps import MISSING, NEEDLESS

AXOLOTL, LLAMA_FACTORY, TRL = "axolotl", "LLaMA-Factory", "TRL"


class Foreign(NamedTuple):
    """ours: our key, dotted; or "", and then `why` says what to do without, and `needless` that nothing is lost."""

    tool: str
    ours: str = ""
    why: str = ""
    needless: bool = False


RENAMED = {
    "model.name_or_path": {
        "axolotl": "base_model",
        "transformers": "model_name_or_path",
        "other tools": "model_name pretrained_model_name_or_path",
    },
    "model.revision": {"TRL": "model_revision", "axolotl": "revision_of_model"},
    "model.dtype": {
        "older transformers": "torch_dtype",
        "transformers": "bf16",
        "axolotl": "bfloat16 float32",
        "LLaMA-Factory": "pure_bf16",
        "other tools": "precision mixed_precision",
    },
    "model.quantization": {
        "TRL and axolotl": "load_in_4bit load_in_8bit",
        "LLaMA-Factory": "quantization_bit",
        "ms-swift": "quant_bits",
    },
    "model.attn_implementation": {
        "LLaMA-Factory": "flash_attn",
        "ms-swift": "attn_impl",
        "axolotl": "flash_attention sdp_attention xformers_attention eager_attention flex_attention",
    },
    "adapter": {"LLaMA-Factory": "peft_config", "other tools": "lora peft"},
    "adapter.type": {"TRL": "use_peft", "LLaMA-Factory": "finetuning_type", "ms-swift": "tuner_type train_type"},
    "adapter.r": {"axolotl and TRL": "lora_r", "LLaMA-Factory": "lora_rank", "other tools": "rank"},
    "adapter.alpha": {"peft": "lora_alpha"},
    "adapter.dropout": {"peft": "lora_dropout"},
    "adapter.target_modules": {
        "LLaMA-Factory": "lora_target",
        "axolotl and TRL": "lora_target_modules",
        "axolotl": "lora_target_linear",
        "torchtune": "lora_attn_modules apply_lora_to_mlp apply_lora_to_output",
    },
    "adapter.target_parameters": {"axolotl and TRL": "lora_target_parameters"},
    "adapter.modules_to_save": {"axolotl and TRL": "lora_modules_to_save", "LLaMA-Factory": "additional_target"},
    "adapter.use_dora": {"axolotl": "peft_use_dora"},
    "adapter.use_rslora": {"axolotl": "peft_use_rslora"},
    "adapter.init_lora_weights": {
        "ms-swift": "init_weights",
        "axolotl": "peft_init_lora_weights",
        "LLaMA-Factory": "pissa_init",
    },
    "freeze.layers": {
        "axolotl": "unfrozen_parameters",
        "LLaMA-Factory": "freeze_trainable_layers freeze_trainable_modules",
    },
    "data.train": {
        "LLaMA-Factory": "train_dataset",
        "LLaMA-Factory and ms-swift": "dataset",
        "axolotl and TRL": "datasets",
        "axolotl": "pretraining_dataset",
        "TRL": "dataset_name dataset_mixture dataset_mixer",
        "unsloth": "local_dataset hf_dataset",
        "other tools": "train_data train_file",
    },
    "data.train[].name": {"TRL": "dataset_config"},
    "data.train[].split": {"TRL": "dataset_train_split"},
    "data.train[].path": {"torchtune": "source"},
    "data.train[].field": {"other tools": "json_field"},
    "data.train[].format": {"LLaMA-Factory": "formatting", "axolotl": "ds_type"},
    "data.train[].columns": {
        "axolotl": "field_messages message_property_mappings message_field_role message_field_content "
        "field_instruction field_input field_output field_human field_model field_system field_tools",
        "TRL": "dataset_text_field",
        "torchtune": "column_map conversation_column",
        "other tools": "prompt_template text_column",
    },
    "data.train[].weight": {"LLaMA-Factory": "mix_strategy interleave_probs", "TRL": "fraction"},
    "data.eval": {
        "LLaMA-Factory and ms-swift": "val_dataset",
        "LLaMA-Factory": "eval_dataset",
        "axolotl": "test_datasets",
        "TRL": "dataset_test_split",
        "other tools": "eval_data eval_file validation_file",
    },
    "data.eval_split": {
        "LLaMA-Factory": "val_size",
        "axolotl": "val_set_size",
        "ms-swift": "split_dataset_ratio",
        "TRL": "test_split_size",
    },
    "data.max_length": {
        "axolotl": "sequence_len",
        "LLaMA-Factory": "cutoff_len",
        "older TRL": "max_seq_length",
        "torchtune": "max_seq_len",
        "other tools": "context_length block_size",
    },
    "data.overlong": {
        "axolotl": "excess_length_strategy",
        "TRL": "truncation_mode",
        "ms-swift": "truncation_strategy",
    },
    "data.packing": {
        "axolotl": "sample_packing",
        "LLaMA-Factory": "neat_packing",
        "torchtune": "packed",
        "TRL": "packing_strategy",
    },
    "data.streaming": {"TRL": "dataset_streaming"},
    "data.shuffle_buffer": {
        "LLaMA-Factory": "buffer_size",
        "axolotl": "streaming_multipack_buffer_size pretrain_multipack_buffer_size",
        "ms-swift": "shuffle_buffer_size",
    },
    "data.loss_on": {
        "TRL": "assistant_only_loss completion_only_loss",
        "axolotl": "train_on_inputs roles_to_train",
        "LLaMA-Factory": "train_on_prompt mask_history",
        "ms-swift": "loss_scale",
        "torchtune": "train_on_input masking_strategy",
        "unsloth": "train_on_responses_only",
    },
    "data.chat_template": {
        "LLaMA-Factory": "template",
        "TRL": "chat_template_path",
        "axolotl": "chat_template_jinja",
    },
    "data.system": {
        "LLaMA-Factory": "default_system",
        "axolotl": "default_system_message",
        "torchtune": "new_system_prompt",
    },
    "data.system_mode": {"axolotl": "drop_system_message"},
    "stage": {"axolotl": "rl", "ms-swift": "rlhf_type"},
    "objective": {"other tools": "dpo kto orpo simpo rm"},
    "objective.loss": {"LLaMA-Factory": "pref_loss", "axolotl": "dpo_loss_type"},
    "objective.beta": {"axolotl": "rl_beta dpo_beta orpo_alpha", "LLaMA-Factory": "pref_beta"},
    "objective.label_smoothing": {"LLaMA-Factory": "dpo_label_smoothing", "axolotl": "dpo_label_smoothing_factor"},
    "objective.sft_weight": {"TRL": "cpo_alpha", "LLaMA-Factory": "pref_ftx"},
    "objective.desirable_weight": {"axolotl": "kto_desirable_weight", "LLaMA-Factory": "kto_chosen_weight"},
    "objective.undesirable_weight": {"axolotl": "kto_undesirable_weight", "LLaMA-Factory": "kto_rejected_weight"},
    "train.learning_rate": {"other tools": "lr"},
    "train.num_train_epochs": {"axolotl": "num_epochs", "other tools": "epochs"},
    "train.per_device_train_batch_size": {"axolotl": "micro_batch_size", "torchtitan": "local_batch_size"},
    "train.per_device_train_batch_size or train.global_batch_size": {"other tools": "batch_size"},
    "train.gradient_accumulation_steps": {"other tools": "grad_accum"},
    "train.optim": {"axolotl": "optimizer"},
    "train.lr_scheduler_type": {"axolotl": "lr_scheduler", "other tools": "scheduler"},
    "train.warmup_steps": {"torchtune": "num_warmup_steps"},
    "train.max_grad_norm": {"torchtune": "clip_grad_norm", "other tools": "gradient_clipping grad_clip"},
    "train.activation_checkpointing": {
        "LLaMA-Factory": "disable_gradient_checkpointing",
        "torchtune": "enable_activation_checkpointing",
        "unsloth": "use_gradient_checkpointing",
    },
    "train.sampling": {
        "transformers": "train_sampling_strategy",
        "LLaMA-Factory": "disable_shuffling",
        "axolotl": "curriculum_sampling",
        "TRL": "shuffle_dataset",
        "ms-swift": "dataset_shuffle",
    },
    "train.logging_steps": {"torchtune": "log_every_n_steps"},
    "train.seed": {"unsloth": "random_state random_seed"},
    "eval.steps": {"older transformers": "evaluation_strategy", "transformers": "eval_strategy eval_steps"},
    "eval.per_device_eval_batch_size": {"axolotl": "eval_batch_size"},
    "eval.max_new_tokens": {"axolotl": "eval_max_new_tokens"},
    "eval.early_stopping_patience": {"LLaMA-Factory": "early_stopping_steps"},
    "save.steps": {"transformers": "save_strategy save_steps"},
    "save.total_limit": {"transformers": "save_total_limit"},
    "report_to": {
        "axolotl": "use_wandb use_tensorboard use_mlflow use_trackio",
        "torchtune": "metric_logger",
    },
    "run_name": {"axolotl": "wandb_name mlflow_run_name trackio_run_name", "older axolotl": "wandb_run_id"},
    "resume": {
        "transformers": "resume_from_checkpoint",
        "axolotl": "auto_resume_from_checkpoints",
    },
    "extends": {"Hydra": "defaults", "OpenMMLab": "_base_", "other tools": "include"},
}

# Names that are another tool's only in one section of a recipe, elsewhere ours or nobody's.
IN_SECTION = {
    ("model", "name"): Foreign("other tools", "model.name_or_path"),
    ("model", "path"): Foreign("other tools", "model.name_or_path"),
    ("data.train", "type"): Foreign("axolotl", "data.train[].format"),
    ("data.eval", "type"): Foreign("axolotl", "data.eval[].format"),
    ("eval", "batch_size"): Foreign("other tools", "eval.per_device_eval_batch_size"),
    ("eval", "strategy"): Foreign("other tools", "eval.steps"),
    ("save", "strategy"): Foreign("other tools", "save.steps"),
}

# By our key, values as others write them: ours, or (with a space in it) what to write.
VALUES: dict[str, dict[str, str]] = {
    "model.dtype": {
        **dict.fromkeys(("fp32", "float", "torch.float32"), "float32"),
        **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
    },
    "model.quantization": {
        **dict.fromkeys(("4", "4-bit", "nf4", "int4", "bnb_4bit", "load_in_4bit"), "4bit"),
        **dict.fromkeys(("8", "8-bit", "int8", "bnb_8bit", "load_in_8bit"), "8bit"),
        **dict.fromkeys(("true", "bnb", "bitsandbytes", "qlora"), "write 4bit or 8bit"),
        **dict.fromkeys(("false", "no", "off"), "none"),
    },
    "model.attn_implementation": {
        **dict.fromkeys(("fa2", "flash", "flash_attn", "flash-attn", "flash_attention"), "flash_attention_2"),
        **dict.fromkeys(("flash_attn_2", "flash_attention2", "flash-attention-2"), "flash_attention_2"),
        **dict.fromkeys(("fa3", "flash_attn_3", "flash_attention3"), "flash_attention_3"),
        **dict.fromkeys(("torch", "xformers"), "sdpa"),
        "flex": "flex_attention",
    },
    "distributed.strategy": {
        **dict.fromkeys(("fsdp", "full_shard", "zero2", "zero3", "zero-2", "zero-3"), "fsdp2"),
        "deepspeed": "fsdp2: it divides the same, and its checkpoints go on with another number of processes",
    },
    "stage": {
        **dict.fromkeys(("rm", "reward_model", "rm_trainer"), "reward"),
        **dict.fromkeys(("orpo", "simpo", "ipo", "cpo"), "write dpo, and objective: the loss"),
    },
    "objective.loss": {
        **dict.fromkeys(("dpo", "sigmoid_dpo"), "sigmoid"),
        "rdpo": "robust",
        **dict.fromkeys(("kto_pair", "kto_unpaired"), "kto"),
        "slic": "hinge",
        "bco": "bco_pair",
        "rpo": "write sigmoid with sft_weight: 1",
        "cdpo": "write sigmoid with label_smoothing: 0.1",
        "sppo": "sppo_hard",
        "exo": "exo_pair",
        "nca": "nca_pair",
    },
    "adapter.type": {
        "full": "none",
        "dora": "write type: lora with use_dora: true",
        "qlora": "write lora, and quantization: 4bit below model",
    },
    "train.optim": {
        **dict.fromkeys(("adam", "adamw", "adamw_hf"), "adamw_torch"),
        "adamw_apex_fused": "adamw_torch_fused",
    },
    "train.lr_scheduler_type": {
        "constant_with_warmup": "constant",
        **dict.fromkeys(("cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr"), "cosine"),
        "polynomial": "linear",
    },
    "report_to": {"none": "leave report_to out for no tracker"},
    "resume": {
        **dict.fromkeys(("true", "yes", "latest", "last"), "auto"),
        **dict.fromkeys(("false", "no", "none"), "never"),
    },
}

FOREIGN = {
    **{
        name: Foreign(tool, ours)
        for ours, tools in RENAMED.items()
        for tool, names in tools.items()
        for name in names.split()
    },
    **{name: Foreign(tool, why=why) for tool, why, names in MISSING for name in names.split()},
    **{name: Foreign(tool, why=why, needless=True) for tool, why, names in NEEDLESS for name in names.split()},
}
