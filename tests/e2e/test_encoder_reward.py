"""A reward model on an encoder: its classification head is trained whole, and what its checkpoint lacks is kept."""

import json
from pathlib import Path

import pytest
import torch
from preferences import pairs, run, unprove, write_rows
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIZE = 32


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each letter, [CLS] before and [SEP] behind a text, as encoders have it."""
    vocabulary = {mark: i for i, mark in enumerate(MARKS)} | {chr(code): code for code in range(32, 127)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": mark for name, mark in zip(("pad", "unk", "cls", "sep"), MARKS, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def encoder(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "distilbert":
        return DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=127, dim=SIZE, n_layers=1, n_heads=2, hidden_dim=SIZE, num_labels=1)
        )
    sizes = {"hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": SIZE}
    return BertForSequenceClassification(BertConfig(vocab_size=127, num_labels=1, **sizes))


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_checkpoint_is_the_model_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, adapter: str
) -> None:
    unprove(monkeypatch)
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "encoder"
    encoder(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")  # as one of masked language modelling, without head and pooler
    kept = {name: w for name, w in weights.items() if "classifier" not in name and "pooler" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    texts = [{side: each[side][-1]["content"] for side in ("prompt", "chosen", "rejected")} for each in pairs(12)]
    rows = write_rows(tmp_path / "rows.jsonl", texts)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {folder}, dtype: float32}}\nadapter: {adapter}\n"
        f"data: {{train: {rows}, eval_split: 4, max_length: 200, overlong: truncate}}\n"
        f"train: {{max_steps: 3, per_device_train_batch_size: 4, learning_rate: 0.01}}\noutput_dir: {tmp_path}/out\n"
    )
    result = run(recipe, "reward")
    assert result["merge_difference"] < 1e-5
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/model", output_loading_info=True)
    assert not info["missing_keys"] and model.config.num_labels == 1
    ids = AutoTokenizer.from_pretrained(tmp_path / "out/model")("abc", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[2, ord("a"), ord("b"), ord("c"), 3]] and torch.isfinite(model(ids).logits).all()
    trained = [row for row in map(json.loads, (tmp_path / "out/metrics.jsonl").open()) if "grad_norm" in row]
    assert len(trained) == 3 and all(row["grad_norm"] > 0 for row in trained)
