"""The engines that ask a server, against a real vLLM on the processor; the oracle is plain transformers.

`make test-vllm` installs vLLM and runs this; without TUNEKIT_VLLM_PYTHON, the interpreter that has it, it is skipped.
"""

import contextlib
import logging
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.tiny import CPU
from tunekit.errors import MissingEnvironment, RecipeError
from tunekit.models import adapters, builtin
from tunekit.models.load import Location, load_model, load_tokenizer, locate
from tunekit.models.policy import Policy
from tunekit.rollout.openai import OpenAIEndpoint
from tunekit.rollout.samples import Completion, Sampling
from tunekit.rollout.vllm import Sync, VllmServer, start_command

PYTHON = os.environ.get("TUNEKIT_VLLM_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="TUNEKIT_VLLM_PYTHON names no interpreter that has vllm")

EOS = 258
SAMPLING = Sampling(max_new_tokens=32, temperature=0.7, ends=frozenset({10, 65}))
PROMPTS = [np.random.default_rng(n).integers(0, 256, n).tolist() for n in (300, 5, 17, 64)]
BOUND = 1e-3  # nats, of a token


@contextlib.contextmanager
def served(model: Path, command: str, *flags: str) -> Iterator[str]:
    """The address of a server that `command`, the line that tunekit prints, starts on `model`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = command.replace("URL_PORT", url.rpartition(":")[2]).replace("MODEL", str(model))
    words = [str(PYTHON) if word == "python" else word for word in shlex.split(command)]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    log = (model / "server.log").open("w+")
    process = subprocess.Popen(
        ["env", *words, "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", *flags],
        env=os.environ | own,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 240
        while not reached(url):
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def reached(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    return False


def command(sync: Sync) -> str:
    return start_command(sync, "http://127.0.0.1:8000").replace("8000", "URL_PORT")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of a size that vLLM has, whose own sampling settings would show."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 512}
    config = LlamaConfig(**sizes, initializer_range=0.1, tie_word_embeddings=True, eos_token_id=EOS, bos_token_id=257)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=EOS, repetition_penalty=1.3)
    model.save_pretrained(folder)
    load_tokenizer(locate("tiny-random/llama")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    with served(tiny, "VLLM_SERVER_DEV_MODE=1 " + command("adapter")) as address:
        yield address


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if builtin.SMOLLM2 not in builtin.present():
        pytest.skip(f"{builtin.SMOLLM2} is not in the cache")
    folder = builtin.resolve(builtin.SMOLLM2)
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def smollm2_url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    linked = tmp_path_factory.mktemp("smollm2")
    for file in smollm2.iterdir():
        (linked / file.name).symlink_to(file)
    with served(linked, command("adapter"), "--served-model-name", "smollm2") as address:
        yield address


def policy_of(folder: Path) -> Policy:
    model = load_model(Location("model", str(folder)), dtype=torch.float32, device=CPU)
    return Policy(model, torch.float32, 256)


def with_adapter(folder: Path, seed: int) -> Policy:
    """An adapter large enough to change every answer."""
    torch.manual_seed(seed)
    base = policy_of(folder).causal
    model = adapters.add_lora(base, r=4, alpha=8, dropout=0.0, target_modules="all-linear", init_lora_weights=False)
    return Policy(model, torch.float32, 256)


def moved(folder: Path, seed: int) -> Policy:
    torch.manual_seed(seed)
    policy = policy_of(folder)
    with torch.no_grad():
        for parameter in policy.causal.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@torch.no_grad()
def known(policy: Policy, prompt: Sequence[int], ids: NDArray[np.int32], sampling: Sampling) -> NDArray[np.float32]:
    """Log-probabilities of `ids` by the model's own forward pass."""
    policy.eval()
    whole = torch.tensor([[*prompt, *ids.tolist()]])
    logits = policy.causal(whole, use_cache=False, attention_mask=torch.ones_like(whole)).logits[
        0, len(prompt) - 1 : -1
    ]
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        logits[logits < logits.topk(sampling.top_k).values[:, -1:]] = -torch.inf
    return torch.log_softmax(logits, -1).gather(1, whole[0, len(prompt) :, None]).squeeze(1).numpy()


def difference(policy: Policy, answers: list[list[Completion]], sampling: Sampling = SAMPLING) -> float:
    """The largest, in nats, of a token's log-probability that the server gave to that of `policy`."""
    return max(
        float(np.abs(known(policy, prompt, answer.ids, sampling) - answer.logprobs).max())
        for prompt, group in zip(PROMPTS, answers, strict=True)
        for answer in group
    )


def all_ids(answers: list[list[Completion]]) -> list[list[int]]:
    return [answer.ids.tolist() for group in answers for answer in group]


@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(32, temperature=1.3, top_k=7)], ids=["plain", "top_k"])
def test_the_logprobs_are_those_of_the_policy_and_of_the_distribution_sampled_from(
    url: str, tiny: Path, tmp_path: Path, sampling: Sampling
) -> None:
    """This also says that each answer belongs to its prompt, and that the model's repetition penalty is not applied."""
    answers = VllmServer(url, None, "adapter", tmp_path).sample(PROMPTS, 3, sampling, seed=1)
    assert [len(group) for group in answers] == [3] * len(PROMPTS)
    assert difference(policy_of(tiny), answers, sampling) < BOUND


def test_an_equal_seed_gives_equal_answers_and_equal_prompts_different_ones(url: str, tmp_path: Path) -> None:
    engine = VllmServer(url, None, "adapter", tmp_path)
    twice = [PROMPTS[1], PROMPTS[1]]
    first = all_ids(engine.sample(twice, 2, SAMPLING, seed=1))
    assert len({tuple(ids) for ids in first}) == 4
    assert all_ids(engine.sample(twice, 2, SAMPLING, seed=1)) == first
    assert not set(map(tuple, first)) & set(map(tuple, all_ids(engine.sample(twice, 2, SAMPLING, seed=2))))


def test_an_answer_ends_at_the_ends_of_the_recipe_and_at_no_others(url: str, tmp_path: Path) -> None:
    answers = VllmServer(url, None, "adapter", tmp_path).sample(PROMPTS, 40, SAMPLING, seed=1)
    flat = [answer for group in answers for answer in group]
    assert {answer.ended for answer in flat} == {True, False}
    for answer in flat:
        assert not SAMPLING.ends & set(answer.ids[:-1].tolist())
        assert (answer.ids[-1] in SAMPLING.ends) if answer.ended else len(answer.ids) == SAMPLING.max_new_tokens
    assert any(EOS in answer.ids[:-1] for answer in flat)  # the model's own end token


def test_the_answers_come_from_the_adapter_of_the_last_sync(url: str, tiny: Path, tmp_path: Path) -> None:
    engine = VllmServer(url, None, "adapter", tmp_path)
    base, first, second = policy_of(tiny), with_adapter(tiny, 1), with_adapter(tiny, 2)
    for step, policy, other in ((1, first, base), (2, second, first), (2, first, second)):
        engine.sync(policy, step)
        answers = engine.sample(PROMPTS, 2, SAMPLING, seed=1)
        assert difference(other, answers) > 1
        assert difference(policy, answers) < BOUND
        assert len(list(tmp_path.iterdir())) == 1 and len(loaded(url)) == 1
    engine.close()
    assert not list(tmp_path.iterdir()) and not loaded(url)


def loaded(url: str) -> list[str]:
    models = requests.get(f"{url}/v1/models", timeout=10).json()["data"]
    return [model["id"] for model in models if model.get("parent")]


def test_the_answers_come_from_the_reloaded_weights_also_after_a_prompt_seen_before(
    url: str, tiny: Path, tmp_path: Path
) -> None:
    """The longest prompt fills whole blocks of the server's prefix cache; head and embeddings are tied."""
    engine = VllmServer(url, None, "reload", tmp_path)
    before, after = policy_of(tiny), moved(tiny, 1)
    assert difference(before, engine.sample(PROMPTS, 2, SAMPLING, seed=1)) < BOUND
    engine.sync(after, 1)
    answers = engine.sample(PROMPTS, 2, SAMPLING, seed=1)
    engine.sync(before, 2)  # the server is shared
    assert difference(before, answers) > 1
    assert difference(after, answers) < BOUND
    assert difference(before, engine.sample(PROMPTS, 2, SAMPLING, seed=1)) < BOUND
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_served_and_a_prompt_that_is_too_long_are_named(
    url: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        VllmServer(url, "nonesuch", "adapter", tmp_path)
    assert "'nonesuch' is not served" in caught.value.message and str(tiny) in caught.value.fix
    with pytest.raises(MissingEnvironment) as refused:
        VllmServer(url, None, "adapter", tmp_path).sample([PROMPTS[0] * 2], 1, SAMPLING, seed=1)
    assert "512" in refused.value.message and "--max-model-len" in refused.value.fix


def test_an_adapter_that_the_server_has_no_room_for_is_told_with_its_reason(
    url: str, tiny: Path, tmp_path: Path
) -> None:
    base = policy_of(tiny).causal
    model = adapters.add_lora(base, r=80, alpha=8, dropout=0.0, target_modules="all-linear")
    with pytest.raises(MissingEnvironment) as caught:
        VllmServer(url, None, "adapter", tmp_path).sync(Policy(model, torch.float32, 256), 1)
    assert "80" in caught.value.message and "--max-lora-rank" in caught.value.fix


def test_a_server_with_the_logprobs_of_another_distribution_or_without_the_routes_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = command("reload").replace("VLLM_SERVER_DEV_MODE=1 ", "").replace(" --logprobs-mode processed_logprobs", "")
    with served(tiny, bare) as url:
        with pytest.raises(MissingEnvironment, match="another distribution") as caught:
            VllmServer(url, None, "adapter", tmp_path)
        assert "--logprobs-mode processed_logprobs" in caught.value.fix
        monkeypatch.setattr(VllmServer, "_require_processed_logprobs", lambda engine: None)
        for sync, policy in (("adapter", with_adapter(tiny, 1)), ("reload", policy_of(tiny))):
            with pytest.raises(MissingEnvironment, match="runs without VLLM_"):
                VllmServer(url, None, sync, tmp_path).sync(policy, 1)  # type: ignore[arg-type]


def test_a_real_model_answers_as_its_policy_before_and_after_a_sync(
    smollm2_url: str, smollm2: Path, tmp_path: Path
) -> None:
    engine = VllmServer(smollm2_url, "smollm2", "adapter", tmp_path)
    sampling = Sampling(max_new_tokens=32, ends=frozenset({0, 2}))
    assert difference(policy_of(smollm2), engine.sample(PROMPTS, 2, sampling, seed=1), sampling) < BOUND
    policy = with_adapter(smollm2, 1)
    engine.sync(policy, 1)
    assert difference(policy, engine.sample(PROMPTS, 2, sampling, seed=1), sampling) < BOUND
    engine.close()


def test_the_endpoint_answers_in_the_text_that_the_engine_vllm_gives_in_ids(
    smollm2_url: str, smollm2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(Location("model", str(smollm2)))
    chats = [[{"role": "user", "content": text}] for text in ("Say hello.", "Name three colours.", "What is 2 + 3?")]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    sampling = Sampling(max_new_tokens=48, temperature=0.5, ends=frozenset({0, 2}))
    endpoint = OpenAIEndpoint(f"{smollm2_url}/v1", None, tokenizer)
    with caplog.at_level(logging.WARNING, "tunekit"):
        for step in range(2):
            endpoint.sync(policy_of(smollm2), step)
    assert caplog.text.count("off-policy") == 1
    told = endpoint.sample(prompts, 3, sampling, seed=1)
    exact = VllmServer(smollm2_url, None, "adapter", tmp_path).sample(prompts, 3, sampling, seed=1)
    assert {answer.ended for group in told for answer in group} == {True, False}
    for one, other in zip([a for group in told for a in group], [a for group in exact for a in group], strict=True):
        assert one.logprobs is None and one.ended == other.ended
        assert tokenizer.decode(one.ids) == tokenizer.decode(other.ids)
