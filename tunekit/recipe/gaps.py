"""Keys of other tools that no recipe has: (whose they are, what to do without them or why nothing is lost, the names).

MISSING: what they do is not done here;  NEEDLESS: it is done anyway, or has no effect on what is trained
"""

PROCESSES = "several processes are the section distributed here: processes, strategy (ddp or fsdp2), nodes"
NO_SUCH_SETTING = "processes have no settings of that kind here"
ONLY_FSDP2 = (
    "what is divided here are weights, gradients and optimizer states, by distributed.strategy: fsdp2; tensor, context "
    "and expert parallelism are not proven with it"
)
ONE_QUANTISATION = (
    "model.quantization has one form of each: 4bit is NF4 with double quantisation, 8bit is int8 with products in "
    "model.dtype"
)
ONLY_DTYPES = "model.dtype takes bfloat16 or float32 only"
NO_RL = "online RL has the stages ppo, grpo and rloo here, with the sections rewards, rollout and objective"
OWN_REFERENCE = "the reference is the model that training starts from"
ONE_REFERENCE = "what the reference says is computed once, before training"
NO_UPLOAD = "nothing is uploaded; output_dir/model is an ordinary model folder that any uploader takes"
NO_METHOD = "this version does not have this method"
TEXT_ONLY = "this version trains on text only"
OWN_KERNELS = "a speed-up of that tool's own, without effect on the result"
NO_PADDING = "rows are laid out flat, nothing is padded"
ALL_ROWS = 'all rows are taken; cut the file, or of a data set of the hub take split: "train[:1000]"'
OWN_READING = "how the rows are read and kept is not for the recipe to say"

MISSING = [
    ("other tools", "write adapter: lora, and quantization: 4bit below model", "qlora"),
    ("LLaMA-Factory", ONE_QUANTISATION, "quantization_method quantization_type double_quantization quant_config"),
    ("LLaMA-Factory", "chosen by the machine", "quantization_device_map"),
    ("ms-swift", ONE_QUANTISATION, "quant_method bnb_4bit_compute_dtype"),
    ("TRL", ONE_QUANTISATION, "bnb_4bit_quant_type bnb_4bit_quant_storage use_bnb_nested_quant"),
    ("transformers", ONE_QUANTISATION, "quantization_config bnb_4bit_use_double_quant"),
    ("axolotl", ONE_QUANTISATION, "gptq bnb_config_kwargs qat loftq_config quantize_moe_experts"),
    ("transformers", ONLY_DTYPES, "fp16"),
    ("axolotl", ONLY_DTYPES, "float16"),
    ("LLaMA-Factory", ONLY_DTYPES, "fp8 fp8_backend"),
    ("transformers", PROCESSES, "deepspeed fsdp fsdp_config accelerator_config parallelism_config"),
    ("other tools", PROCESSES, "num_gpus num_processes"),
    ("axolotl", PROCESSES, "fsdp_version fsdp_final_state_dict_type"),
    ("axolotl", ONLY_FSDP2, "sequence_parallel_degree tensor_parallel_size"),
    ("axolotl", ONLY_FSDP2, "context_parallel_size dp_shard_size dp_replicate_size expert_parallel_size"),
    ("axolotl", "tunekit launch RECIPE --on ray does it", "use_ray"),
    ("LLaMA-Factory", PROCESSES, "dist_config use_megatron"),
    ("axolotl", NO_RL, "trl vllm process_reward_model"),
    ("axolotl", NO_METHOD, "dpo_use_weighting dpo_norm_loss"),
    ("TRL", NO_METHOD, "use_weighting ld_alpha f_divergence_type f_alpha_divergence_coef"),
    ("LLaMA-Factory", NO_METHOD, "pref_bco_weight"),
    ("TRL", "a model's own dropout stays; that of the adapter is adapter.dropout", "disable_dropout"),
    ("LLaMA-Factory", NO_RL, "reward_model_type ppo_epochs ppo_target"),
    ("TRL", NO_RL, "reward_model_path reward_model_name_or_path reward_funcs use_vllm sft_model_path"),
    ("other tools", NO_RL, "ppo grpo rlhf"),
    ("other tools", OWN_REFERENCE, "ref_model ref_model_name_or_path ref_adapter_name sync_ref_model"),
    ("TRL", OWN_REFERENCE, "ref_model_mixup_alpha ref_model_sync_steps"),
    ("LLaMA-Factory", OWN_REFERENCE, "ref_model_adapters ref_model_quantization_bit"),
    ("TRL", "a pair longer than data.max_length follows data.overlong as a whole", "max_prompt_length"),
    ("transformers", NO_UPLOAD, "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision"),
    ("LLaMA-Factory", NO_UPLOAD, "export_hub_model_id"),
    ("axolotl", NO_UPLOAD, "push_dataset_to_hub"),
    ("transformers", NO_METHOD, "neftune_noise_alpha label_smoothing_factor optim_target_modules"),
    ("axolotl", NO_METHOD, "loraplus_lr_ratio loraplus_lr_embedding relora relora_steps lisa_n_layers lr_groups"),
    ("axolotl", NO_METHOD, "embedding_lr embedding_lr_scale use_pose peft_layers_to_transform lora_fan_in_fan_out"),
    ("axolotl", NO_METHOD, "peft_layer_replication peft_trainable_token_indices s2_attention diffusion"),
    ("LLaMA-Factory", NO_METHOD, "use_galore use_badam use_apollo use_muon use_llama_pro shift_attn mixture_of_depths"),
    ("LLaMA-Factory", NO_METHOD, "use_adam_mini freeze_extra_modules use_dft_loss use_oft oft_rank use_asft_loss"),
    ("ms-swift", NO_METHOD, "lorap_lr_ratio"),
    ("unsloth", NO_METHOD, "finetune_vision_layers embedding_learning_rate"),
    ("peft", NO_METHOD, "lora_bias"),
    ("older transformers", NO_PADDING, "group_by_length"),
    ("transformers", "the optimizer keeps its own defaults", "adam_beta1 adam_beta2 adam_epsilon optim_args"),
    ("transformers", "a schedule has no settings here; it ends at zero", "lr_scheduler_kwargs"),
    ("axolotl", "a schedule has no settings here; it ends at zero", "cosine_min_lr_ratio cosine_constant_lr_ratio"),
    ("transformers", "code of a model repository is never run", "trust_remote_code"),
    ("transformers", "the model stays as its own config says", "rope_scaling model_init_kwargs"),
    ("axolotl", "the model stays as its own config says", "overrides_of_model_config overrides_of_model_kwargs"),
    ("axolotl", "the tokenizer stays as the model has it", "special_tokens tokens tokenizer_config eot_tokens"),
    ("axolotl", "the tokenizer stays as the model has it", "resize_token_embeddings_to_32x added_tokens_overrides"),
    ("LLaMA-Factory", "the tokenizer stays as the model has it", "resize_vocab add_tokens add_special_tokens"),
    ("TRL", "the tokenizer stays as the model has it", "eos_token"),
    ("other tools", "the tokenizer is that of the model", "tokenizer tokenizer_name_or_path tokenizer_path"),
    ("axolotl", "eval.steps counts optimizer steps; null is once an epoch", "evals_per_epoch"),
    ("axolotl", "save.steps counts optimizer steps", "saves_per_epoch"),
    ("LLaMA-Factory", ALL_ROWS, "max_samples"),
    ("LLaMA-Factory", "the held-out rows of all sources are measured together", "eval_on_each_dataset"),
    ("axolotl", ALL_ROWS, "dataset_shard_num dataset_shard_idx"),
    ("axolotl", "equal rows are counted and named, not removed", "dataset_exact_deduplication"),
    ("axolotl", "training starts from a whole model; tunekit merge the adapter, name the result", "lora_model_dir"),
    ("LLaMA-Factory", "training starts from a whole model; tunekit merge the adapter, name the result", "ref_adapters"),
    ("LLaMA-Factory", "training starts from a whole model; tunekit merge it first", "adapter_name_or_path"),
    ("transformers", "say the batch size; a first pass over the longest batch tries it", "auto_find_batch_size"),
    ("LLaMA-Factory", TEXT_ONLY, "image_max_pixels video_max_pixels freeze_vision_tower media_dir audio_sampling_rate"),
    ("axolotl", TEXT_ONLY, "processor_type image_size image_resize_algorithm"),
    ("LLaMA-Factory", "eval.metrics has the metrics on generated answers", "predict_with_generate compute_accuracy"),
    ("axolotl", "eval.metrics has the metrics on generated answers", "eval_table_size do_causal_lm_eval do_bench_eval"),
    ("axolotl", "write report_to: wandb, and set WANDB_PROJECT in the environment", "wandb_project"),
    ("axolotl", "write report_to: mlflow, and set MLFLOW_TRACKING_URI in the environment", "mlflow_tracking_uri"),
    ("axolotl", "set WANDB_ENTITY in the environment", "wandb_entity"),
    ("axolotl", "the tracker's own settings stand in the environment", "wandb_watch wandb_log_model wandb_mode"),
    ("axolotl", "set MLFLOW_EXPERIMENT_NAME in the environment", "mlflow_experiment_name"),
    ("LLaMA-Factory", "trackers: tensorboard, wandb, mlflow, trackio", "use_swanlab swanlab_project"),
    ("axolotl", "trackers: tensorboard, wandb, mlflow, trackio", "comet_project_name use_comet use_otel_metrics"),
    ("axolotl", "tunekit merge makes one model of base and adapter", "merge_lora"),
    ("transformers", "a checkpoint is whole, so that resume=auto goes on to the same weights", "save_only_model"),
    (
        "older transformers",
        "an output_dir that is not empty is refused; name another, delete it, or go on with resume: auto",
        "overwrite_output_dir",
    ),
]
NEEDLESS = [
    ("transformers", "the command says what is done", "do_train do_eval do_predict"),
    ("transformers", OWN_READING, "remove_unused_columns dataloader_num_workers dataloader_pin_memory data_seed"),
    ("transformers", OWN_READING, "dataloader_prefetch_factor dataloader_drop_last dataloader_persistent_workers"),
    ("TRL", OWN_READING, "dataset_num_proc dataset_kwargs dataset_batch_size"),
    ("axolotl", OWN_READING, "dataset_prepared_path dataset_processes dataset_keep_in_memory skip_prepare_dataset"),
    ("axolotl", OWN_READING, "shuffle_merged_datasets preprocess_shards sample_packing_group_size"),
    ("axolotl", OWN_READING, "sample_packing_bin_size sample_packing_sequentially min_sample_len"),
    ("LLaMA-Factory", OWN_READING, "overwrite_cache preprocessing_num_workers preprocessing_batch_size dataset_dir"),
    ("LLaMA-Factory", OWN_READING, "tokenized_path cache_dir data_shared_file_system"),
    ("axolotl", "the model's own config says so", "model_type tokenizer_type base_model_config tokenizer_use_fast"),
    ("axolotl", "the model's own config says so", "is_llama_derived_model is_mistral_derived_model"),
    ("LLaMA-Factory", "the model's own config says so", "model_class init_config"),
    ("axolotl", NO_PADDING, "pad_to_sequence_len batch_flattening eval_sample_packing"),
    ("TRL", NO_PADDING, "padding_free pad_to_multiple_of eval_packing pad_token use_padding_free"),
    ("axolotl", NO_PADDING, "dpo_padding_free"),
    ("TRL", ONE_REFERENCE, "precompute_ref_log_probs precompute_ref_batch_size"),
    ("axolotl", OWN_KERNELS, "dpo_use_logits_to_keep"),
    ("transformers", OWN_KERNELS, "tf32 use_liger_kernel liger_kernel_config torch_compile torch_compile_backend"),
    ("axolotl", OWN_KERNELS, "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp"),
    ("axolotl", OWN_KERNELS, "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel cut_cross_entropy"),
    ("axolotl", OWN_KERNELS, "liger_rope liger_rms_norm liger_glu_activation liger_layer_norm plugins use_kernels"),
    ("axolotl", OWN_KERNELS, "liger_fused_linear_cross_entropy unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o"),
    ("LLaMA-Factory", OWN_KERNELS, "enable_liger_kernel use_unsloth use_unsloth_gc use_v1_kernels kernel_config"),
    ("TRL", OWN_KERNELS, "activation_offloading"),
    ("transformers", "activations are recomputed or they are not", "gradient_checkpointing_kwargs"),
    ("LLaMA-Factory", "activations are recomputed or they are not", "use_reentrant_gc upcast_layernorm"),
    ("transformers", NO_SUCH_SETTING, "ddp_timeout ddp_backend ddp_find_unused_parameters local_rank"),
    ("axolotl", NO_SUCH_SETTING, "ddp world_size ddp_broadcast_buffers ddp_bucket_cap_mb"),
    ("LLaMA-Factory", NO_SUCH_SETTING, "ray_num_workers ray_run_name resources_per_worker placement_strategy"),
    ("transformers", "losses are per trained token, whatever the batches", "average_tokens_across_devices"),
    ("transformers", "every step goes to metrics.jsonl", "logging_strategy logging_first_step log_level disable_tqdm"),
    ("transformers", "every step goes to metrics.jsonl", "include_num_input_tokens_seen skip_memory_metrics"),
    ("axolotl", "every step goes to metrics.jsonl", "include_tokens_per_second debug profiler_steps gc_steps"),
    ("transformers", "all that a run writes lies in output_dir", "logging_dir"),
    ("LLaMA-Factory", "loss.png is always drawn", "plot_loss"),
    ("axolotl", "a loss that is not finite always ends the run", "loss_watchdog_threshold loss_watchdog_patience"),
    ("axolotl", "unknown keys are always refused", "strict"),
    ("axolotl", "the first checkpoint is verified like every other", "save_first_step"),
    ("transformers", "checkpoints are always safetensors", "save_safetensors"),
    (
        "transformers",
        "chosen by the machine",
        "use_cpu no_cuda device device_map low_cpu_mem_usage use_cache",
    ),
    ("axolotl", "a turn is trained up to the token that ends it", "train_on_eos"),
]
