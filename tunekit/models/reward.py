"""Sequence classification as a judge: reward models, with one output, and classifiers, with labels."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from tunekit.errors import RecipeError
from tunekit.models.load import default_device, from_hub_or_disk, load_tokenizer, locate, resolve_dtype

log = logging.getLogger("tunekit")


@dataclass
class Context:
    """How many tokens a model reads, None: any number; counts the texts that are longer and says so the first time."""

    name: str
    tokens: int | None
    seen: int = 0
    cut: int = 0

    @classmethod
    def of(cls, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Context":
        """Some models have more positions than they can use (RoBERTa), which their tokenizers know."""
        limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
        known = [each for each in limits if each is not None and 0 < each < 1 << 30]
        return cls(name, min(known, default=None))

    def look(self, lengths: Sequence[int], lost: str) -> None:
        before, self.seen = self.cut, self.seen + len(lengths)
        self.cut += sum(self.tokens is not None and length > self.tokens for length in lengths)
        if self.cut and not before:
            log.warning(
                "model: %s reads %d tokens, and %d of the first %d texts are longer: their %s is cut off (said once)",
                self.name,
                self.tokens,
                self.cut,
                self.seen,
                lost,
            )


@dataclass(frozen=True)
class RewardModel:
    """`rewards` of texts, in their order; longer texts than its context are cut at their beginning."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    context: Context

    @torch.no_grad()
    def rewards(self, texts: Sequence[str], poll: Callable[[], None] = lambda: None) -> list[float]:
        """Texts that a chat template rendered, or raw ones; special tokens are not added where they are written."""
        bos = self.tokenizer.bos_token
        ids = [
            self.tokenizer(text, add_special_tokens=bos is None or not text.startswith(bos), verbose=False)["input_ids"]
            for text in texts
        ]
        self.context.look([len(each) for each in ids], "beginning")
        ids = [each[-(self.context.tokens or 0) :] for each in ids]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found = [0.0] * len(ids)
        for start in range(0, len(order), self.batch_size):
            poll()
            chosen = order[start : start + self.batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [ids[i] for i in chosen]}, padding_side="right", return_tensors="pt"
            )
            logits = self.model(**batch.to(self.model.device)).logits.float()
            for i, reward in zip(chosen, logits[:, 0].tolist(), strict=True):
                found[i] = reward
        return found


def load_reward_model(name: str, dtype: str = "auto", batch_size: int = 16) -> RewardModel:
    """Raises `RecipeError` where `name` is no sequence-classification model with one output."""
    model, info = _loaded(name, dtype, "model", "a reward model")
    tokenizer = load_tokenizer(locate(name))
    if info["missing_keys"] or model.config.num_labels != 1:
        what = f"its head is missing ({', '.join(sorted(info['missing_keys']))})" if info["missing_keys"] else (
            f"it has {model.config.num_labels} outputs"
        )  # fmt: skip
        raise RecipeError(f"model: {name} is no reward model: {what}", "A task of kind preference needs one.")
    model.config.pad_token_id = tokenizer.pad_token_id
    return RewardModel(model.eval(), tokenizer, batch_size, Context.of(name, model, tokenizer))


@dataclass(frozen=True)
class Classifier:
    """`probabilities` of the labels of texts; longer texts than its context are cut at their end."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: Context
    batch_size: int = 16

    def column(self, label: str) -> int:
        """Raises `RecipeError` where there is no such label."""
        labels = self.model.config.id2label or {}
        for number, name in labels.items():
            if str(name).lower() == label.lower():
                return int(number)
        raise RecipeError(
            f"rewards: label: {label}: {self.name} has no such label",
            f"It has: {', '.join(map(str, labels.values()))}.",
        )

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str], poll: Callable[[], None] = lambda: None) -> NDArray[np.float64]:
        """`(S, labels)`: softmax, or of a model of several labels at once the logistic of each."""
        several = self.model.config.problem_type == "multi_label_classification"
        limit, found = self.context.tokens, []
        for start in range(0, len(texts), self.batch_size):
            poll()
            chosen = list(texts[start : start + self.batch_size])
            lengths = [len(ids) for ids in self.tokenizer(chosen, verbose=False)["input_ids"]]
            self.context.look(lengths, "end")
            # A model reads at least one token.
            read = [text if count else self.tokenizer.eos_token for text, count in zip(chosen, lengths, strict=True)]
            batch = self.tokenizer(
                read,
                padding=True,
                padding_side="right",
                truncation=limit is not None,
                max_length=limit,
                return_tensors="pt",
            )
            logits = self.model(**batch.to(self.model.device)).logits.double()
            found.append((logits.sigmoid() if several else logits.softmax(-1)).cpu().numpy())
        return np.concatenate(found)


def load_classifier(name: str, dtype: str = "auto") -> Classifier:
    """Raises `RecipeError` where `name` is no sequence-classification model with several labels."""
    model, info = _loaded(name, dtype, "rewards: model", "a classifier")
    if info["missing_keys"]:
        raise RecipeError(f"rewards: model: {name} is no classifier: its head is missing")
    if model.config.num_labels == 1 and model.config.problem_type != "multi_label_classification":
        raise RecipeError(
            f"rewards: model: {name} is no classifier: it has one output", "It may be a reward model: leave out label."
        )
    tokenizer = load_tokenizer(locate(name))
    model.config.pad_token_id = tokenizer.pad_token_id
    return Classifier(name, model.eval(), tokenizer, Context.of(name, model, tokenizer))


def _loaded(name: str, dtype: str, key: str, what: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A sequence-classification model on the default device, and what transformers says of its weights."""
    device = default_device()
    try:
        model, info = from_hub_or_disk(
            AutoModelForSequenceClassification,
            locate(name),
            dtype=resolve_dtype(dtype, device),
            output_loading_info=True,
        )
    except ValueError as error:
        raise RecipeError(f"{key}: {name}: cannot be loaded as {what}: {error}") from error
    return model.to(device), info
