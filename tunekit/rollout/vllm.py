"""Answers from a vLLM server, a process and environment of its own, which is given the weights before each rollout."""

import math
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from safetensors import SafetensorError
from transformers import PreTrainedModel

from tunekit.errors import MissingEnvironment, StorageError
from tunekit.models.adapters import PeftModel, save_adapter
from tunekit.models.policy import Policy
from tunekit.rollout.http import Client, Refused, address, at_once, prompt_seed
from tunekit.rollout.samples import Completion, Sampling

Sync = Literal["adapter", "reload"]

# What a server needs so that its weights can be changed.
SWITCHES: dict[Sync, str] = {"adapter": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "reload": "VLLM_SERVER_DEV_MODE=1"}
FLAGS: dict[Sync, str] = {"adapter": " --enable-lora --max-lora-rank 64", "reload": ""}
# On a processor a prompt that is read in pieces ends the server, where its request has a seed ("CPU Generator does not
# use offset", seen in 0.31.0).
WHOLE_PROMPTS = "--no-enable-chunked-prefill"
# The sampling of the recipe and no other: a server fills in what the model's generation_config.json says. Its end
# tokens are ignored for the same reason; those of the request still end an answer.
PLAIN: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
    "ignore_eos": True,
}
PROBED = 8  # tokens


def start_command(sync: Sync, base_url: str, model: str = "MODEL") -> str:
    """The line that starts a server which this engine can use."""
    parts = urlsplit(base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return (
        f"{SWITCHES[sync]} python -m vllm.entrypoints.openai.api_server --model {model} --host {parts.hostname}"
        f" --port {port} --logprobs-mode processed_logprobs {WHOLE_PROMPTS}{FLAGS[sync]}"
    )


class VllmServer:
    """The engine `vllm`. Weights go through `folder`, which the server sees under the same path.

    sync: "adapter" loads the LoRA adapter beside the base that the server has; "reload" overwrites its weights
    """

    in_process = False

    def __init__(self, base_url: str, model_name: str | None, sync: Sync, folder: Path) -> None:
        """Raises `MissingEnvironment` (exit 7) where no usable server answers, `RecipeError` for an unknown model."""
        start = start_command(sync, address(base_url))
        self._client = Client(base_url, f"Start a server, in an environment that has vllm: {start}")
        self._base = self._model = self._client.model(model_name)
        self._sync: Sync = sync
        self._folder = folder.resolve()
        self._loaded: Path | None = None
        self._require_processed_logprobs()

    def sync(self, policy: Policy, step: int) -> None:
        """From here on the answers are those of `policy`. Raises `MissingEnvironment` or `StorageError`."""
        # Unique: a name that another run left is refused, and one that is used again is answered from cached prompts.
        name = f"policy-{step}-{uuid.uuid4().hex[:8]}"
        folder = self._folder / name
        try:
            folder.mkdir(parents=True)
            self._save(policy, folder)
            for file in folder.iterdir():
                file.chmod(0o644)  # safetensors writes 0600, and the server may run as another user
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{folder}: the weights for the vLLM server cannot be written: {error}", "Make room."
            ) from error
        if self._sync == "adapter":
            self._load(name, folder)
        else:
            self._reload(folder)

    def _save(self, policy: Policy, folder: Path) -> None:
        if self._sync == "adapter":
            assert isinstance(policy.model, PeftModel), "only an adapter can be loaded beside a base"
            save_adapter(policy.model, folder)
        else:
            assert not isinstance(policy.model, PeftModel), "an adapter cannot overwrite weights"
            _save_whole(policy.causal, folder)

    def _load(self, name: str, folder: Path) -> None:
        self._control("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        self._unload()
        self._model, self._loaded = name, folder

    def _unload(self) -> None:
        """Takes the loaded adapter off the server; its files go last, since the server may read them again."""
        if self._loaded is None:
            return
        loaded, self._model, self._loaded = self._loaded, self._base, None
        with suppress(Refused):  # a server that was restarted does not have it
            self._client.post("/v1/unload_lora_adapter", {"lora_name": loaded.name})
        shutil.rmtree(loaded, ignore_errors=True)

    def _reload(self, folder: Path) -> None:
        try:
            self._control("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            # Else prompts that were seen before would be answered from the keys and values of the old weights.
            if '"success":true' not in "".join(self._control("/reset_prefix_cache", {}).split()):
                raise MissingEnvironment(
                    f"the vLLM server at {self._client.url} keeps prompts of the old weights in its prefix cache",
                    "Does another program ask it? It must be this run's alone.",
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _control(self, route: str, body: dict[str, Any]) -> str:
        try:
            return self._client.post(route, body)
        except Refused as error:
            if error.status == 404 and error.said == "Not Found":  # a route, not an adapter
                raise MissingEnvironment(
                    f"the vLLM server at {self._client.url} has no {route}: it runs without {SWITCHES[self._sync]}",
                    self._client.start,
                ) from error
            raise MissingEnvironment(
                f"the vLLM server does not take the weights: {error.message}",
                f"It must see {self._folder} under this path, have the model that is trained, and be started with what "
                f"this sync needs: {start_command(self._sync, self._client.url)}",
            ) from error

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        num_generations: int,
        sampling: Sampling,
        seed: int,
        poll: Callable[[], None] = lambda: None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See `Sampler`. Raises `MissingEnvironment` where the server fails or is of too old a version."""
        requests = [
            self._request(prompt, num_generations, sampling, prompt_seed(seed, number))
            for number, prompt in zip(numbers or range(len(prompts)), prompts, strict=True)
        ]
        return at_once(partial(self._completions, ends=sampling.ends), requests, poll)

    def _request(self, prompt: Sequence[int], n: int, sampling: Sampling, seed: int) -> dict[str, Any]:
        return PLAIN | {
            "model": self._model,
            "prompt": [int(token) for token in prompt],
            "n": n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "stop_token_ids": sorted(sampling.ends),
            "seed": seed,
            "logprobs": 0,  # of no token but the sampled one
            "return_token_ids": True,
        }

    def _completions(self, request: dict[str, Any], ends: frozenset[int]) -> list[Completion]:
        try:
            choices = self._client.choices(request)
        except Refused as error:
            if error.status == 404:
                raise MissingEnvironment(
                    f"{self._client.url} no longer has {request['model']}: {error.message}",
                    "Was the server restarted? Resume the run: it hands over its weights again.",
                ) from error
            raise MissingEnvironment(
                error.message, "A prompt with its answer must fit into the server's --max-model-len."
            ) from error
        return [self._completion(choice, ends) for choice in choices]

    def _completion(self, choice: dict[str, Any], ends: frozenset[int]) -> Completion:
        ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not ids or logprobs is None or len(logprobs) != len(ids):
            raise MissingEnvironment(
                f"the answers of {self._client.url} are without token ids or their log-probabilities",
                "It is no vLLM server, or one before 0.10.2: take a newer one.",
            )
        return Completion(np.asarray(ids, np.int32), np.asarray(logprobs, np.float32), ended=ids[-1] in ends)

    def _require_processed_logprobs(self) -> None:
        """Of the one token that top_k = 1 leaves the log-probability is 0, unless it is that before top_k."""
        greedy = self._request([0], 1, Sampling(max_new_tokens=PROBED, top_k=1), seed=0)
        logprobs = self._completions(greedy, frozenset())[0].logprobs
        assert logprobs is not None
        if not math.isclose(float(np.abs(logprobs).max()), 0.0, abs_tol=1e-3):
            raise MissingEnvironment(
                f"vLLM at {self._client.url} gives log-probabilities of another distribution than it samples",
                f"It needs --logprobs-mode processed_logprobs. {self._client.start}",
            )

    def close(self) -> None:
        """Leaves the server without this run's adapter; a server that is gone already is no error."""
        with suppress(MissingEnvironment):
            self._unload()
        self._client.close()


def _save_whole(causal: PreTrainedModel, folder: Path) -> None:
    """Writes the weights, and the head also where it is tied to the embeddings.

    vLLM on CPUs keeps a packed copy of the head, which it makes anew only if the head stands in the files.
    """
    weights = causal.state_dict()
    head = causal.get_output_embeddings()
    for name in (f"{name}.weight" for name, module in causal.named_modules() if module is head):
        weights[name] = weights[name].clone()  # else it is left out as another's equal
    causal.save_pretrained(folder, state_dict=weights)
