"""Answers from an endpoint that speaks OpenAI's completions: its weights are its own, and it is asked in text."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunekit.errors import MissingEnvironment, RecipeError
from tunekit.models.policy import Policy
from tunekit.rollout.http import Client, Refused, at_once, prompt_seed
from tunekit.rollout.samples import Completion, Sampling

log = logging.getLogger("tunekit")

KEY = "OPENAI_API_KEY"
MAX_STOPS = 4  # that the protocol has room for


class OpenAIEndpoint:
    """The engine `openai`. Its answers are read with `tokenizer`, that of the policy."""

    in_process = False

    def __init__(self, base_url: str, model_name: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `MissingEnvironment` (exit 7) where no endpoint answers, `RecipeError` for an unknown model."""
        start = f"Is rollout.base_url right? It is a server with the route /v1/completions; a key is taken from {KEY}."
        self._client = Client(base_url, start, os.environ.get(KEY, ""))
        self._tokenizer = tokenizer
        self._model = self._named(model_name)
        self._said = False

    def _named(self, model_name: str | None) -> str:
        try:
            return self._client.model(model_name)
        except Refused as error:
            if error.status in (401, 403):
                raise MissingEnvironment(error.message, f"Set {KEY} to a key of this endpoint.") from error
            if error.status != 404:
                raise
            if model_name is None:
                raise RecipeError(
                    f"rollout.served_model: {self._client.url} does not list its models", "Name the one to ask."
                ) from error
            return model_name

    def sync(self, policy: Policy, step: int) -> None:
        """Does nothing but say, once, that there is nothing it could do."""
        if not self._said:
            log.warning(
                "rollout.engine openai: no weights can be handed to %s. All answers come from its own, fixed weights "
                "(%s), not from the policy: training is off-policy",
                self._client.url,
                self._model,
            )
            self._said = True

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        num_generations: int,
        sampling: Sampling,
        seed: int,
        poll: Callable[[], None] = lambda: None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See `Sampler`; equal for an equal seed where the endpoint honours it.

        Raises `MissingEnvironment` where the endpoint fails, `RecipeError` for what it cannot be asked.
        """
        if sampling.top_k:
            raise RecipeError(
                f"rollout.top_k: {sampling.top_k}: the protocol of the engine openai does not have it",
                "Leave it out, or use rollout.top_p.",
            )
        requests = [
            self._request(prompt, num_generations, sampling, prompt_seed(seed, number))
            for number, prompt in zip(numbers or range(len(prompts)), prompts, strict=True)
        ]
        return at_once(partial(self._completions, sampling=sampling), requests, poll)

    def _request(self, prompt: Sequence[int], n: int, sampling: Sampling, seed: int) -> dict[str, Any]:
        stops = [self._decoded([end]) for end in self._ends(sampling)[:MAX_STOPS]]
        return {
            "model": self._model,
            "prompt": self._prompt(prompt),
            "n": n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        } | ({"stop": stops} if stops else {})

    def _ends(self, sampling: Sampling) -> list[int]:
        """The ids that end an answer; the tokenizer's own, which its chat template writes, before the others."""
        return sorted(sampling.ends, key=lambda end: (end != self._tokenizer.eos_token_id, end))

    def _prompt(self, ids: Sequence[int]) -> str:
        """The text of a prompt, without the token at its beginning that a server puts there itself."""
        text, first = self._decoded(ids), self._tokenizer.bos_token
        if first and text.startswith(first):
            bare = text.removeprefix(first)
            if self._tokenizer(bare)["input_ids"] == list(ids):
                return bare
        return text

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _completions(self, request: dict[str, Any], sampling: Sampling) -> list[Completion]:
        return [self._completion(choice, sampling) for choice in self._client.choices(request)]

    def _completion(self, choice: dict[str, Any], sampling: Sampling) -> Completion:
        """The ids of an answer's text: those that the policy reads, perhaps not those that the endpoint wrote."""
        text, ends = choice.get("text"), self._ends(sampling)
        if not isinstance(text, str):
            raise MissingEnvironment(f"the answers of {self._client.url} are without text", self._client.start)
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if choice.get("finish_reason") == "stop" or not ids:
            ids += ends[:1]  # its text is not part of the answer's
        whole = [at + 1 for at, token in enumerate(ids) if token in sampling.ends]
        ids = ids[: min([*whole, sampling.max_new_tokens])]
        if not ids:
            raise MissingEnvironment(
                f"{self._client.url} gives an answer without text, and no token ends one", "Name an end token."
            )
        return Completion(np.asarray(ids, np.int32), None, ended=ids[-1] in sampling.ends)

    def close(self) -> None:
        self._client.close()
