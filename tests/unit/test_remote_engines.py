"""What the engines that ask a server do where it fails: no server, or a small real one that answers wrongly.

That they sample rightly is shown against a real server, in tests/e2e/test_vllm_server.py.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from tests.tiny import tiny_model
from tunekit.errors import MissingEnvironment, Preempted, RecipeError
from tunekit.models import adapters
from tunekit.models.load import load_tokenizer, locate
from tunekit.models.policy import Policy
from tunekit.rollout.openai import OpenAIEndpoint
from tunekit.rollout.samples import Sampling
from tunekit.rollout.vllm import VllmServer

Reply = tuple[int, Any]
MODELS: Reply = (200, {"data": [{"id": "base", "parent": None}, {"id": "old", "parent": "base"}]})
SAMPLING = Sampling(max_new_tokens=4, ends=frozenset({258}))
CLOSED = "http://127.0.0.1:9"


class Server:
    """A server at `url` that says `replies[path]`, or what it gives for the body; `seen` is what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply | Callable[[Any], Reply]] = {
            "/v1/models": MODELS,
            "/v1/completions": lambda body: (200, completions(body)),
        }
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: Any) -> None:
                outer.seen.append((self.path, dict(self.headers), body))
                reply = outer.replies.get(self.path, (404, {"detail": "Not Found"}))
                status, said = reply(body) if callable(reply) else reply
                self.send_response(status)
                self.end_headers()
                self.wfile.write((said if isinstance(said, str) else json.dumps(said)).encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def asked(self, path: str) -> list[Any]:
        return [body for asked, _, body in self.seen if asked == path]


def completions(body: Any, **beside: Any) -> dict[str, Any]:
    choice = {
        "token_ids": [104, 105],
        "logprobs": {"token_logprobs": [0.0, 0.0]},
        "text": "hi",
        "finish_reason": "length",
    }
    return {"choices": [choice | {"index": index} | beside for index in range(body["n"])]}


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(locate("tiny-random/llama"))


def adapted() -> Policy:
    model = adapters.add_lora(tiny_model("llama"), r=2, alpha=4, dropout=0.0, target_modules=["q_proj"])  # type: ignore[arg-type]
    return Policy(model, torch.float32, 256)


def test_a_server_that_is_not_there_is_told_with_the_line_that_starts_it(tmp_path: Path) -> None:
    with pytest.raises(MissingEnvironment) as caught:
        VllmServer(CLOSED, None, "adapter", tmp_path)
    assert CLOSED in caught.value.message and "Connection refused" in caught.value.message
    assert caught.value.exit_code == 7
    for part in ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ", "--host 127.0.0.1 --port 9 ", "--enable-lora"):
        assert part in caught.value.fix
    with pytest.raises(MissingEnvironment, match="Connection refused"):
        OpenAIEndpoint(CLOSED, "m", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "file:///etc/passwd", "http://", "http://host:99999", "http://host/?a=b", ""],
)
def test_only_http_addresses_are_taken(url: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rollout\.base_url") as caught:
        VllmServer(url, None, "adapter", tmp_path)
    assert repr(url) in caught.value.message and "http://127.0.0.1:8000" in caught.value.fix


def test_a_password_in_the_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        VllmServer("http://me:secret@host", None, "adapter", tmp_path)
    assert "secret" not in str(caught.value)


def test_without_a_name_the_only_model_is_asked_and_an_unknown_name_is_told_with_those_there_are(
    server: Server, tmp_path: Path
) -> None:
    VllmServer(f"{server.url}/v1/", None, "adapter", tmp_path)
    assert server.asked("/v1/completions")[0]["model"] == "base"
    with pytest.raises(RecipeError, match="'bse' is not served") as caught:
        VllmServer(server.url, "bse", "adapter", tmp_path)
    assert "It has: base." in caught.value.fix
    server.replies["/v1/models"] = (200, {"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(RecipeError, match="several models") as caught:
        VllmServer(server.url, None, "adapter", tmp_path)
    assert "a, b" in caught.value.fix


def test_a_server_in_trouble_is_asked_again_and_at_last_quoted(server: Server, tmp_path: Path) -> None:
    engine = VllmServer(server.url, None, "adapter", tmp_path)
    troubles = iter([503, 500])
    server.replies["/v1/completions"] = lambda body: (next(troubles, 200), completions(body))
    assert len(engine.sample([[1]], 2, SAMPLING, 0)[0]) == 2
    server.replies["/v1/completions"] = (500, {"error": {"message": "the engine died"}})
    with pytest.raises(MissingEnvironment, match="answers 500: the engine died"):
        engine.sample([[1]], 2, SAMPLING, 0)


@pytest.mark.parametrize("reply", ["<html>", {}, {"data": [1]}, [], "null"])
def test_what_is_no_list_of_models_is_shown(server: Server, tmp_path: Path, reply: Any) -> None:
    server.replies["/v1/models"] = (200, reply)
    with pytest.raises(MissingEnvironment, match="/v1/models") as caught:
        VllmServer(server.url, None, "adapter", tmp_path)
    assert (reply if isinstance(reply, str) else json.dumps(reply)) in caught.value.message


def test_answers_without_ids_are_those_of_an_old_server(server: Server, tmp_path: Path) -> None:
    server.replies["/v1/completions"] = lambda body: (200, completions(body, token_ids=None))
    with pytest.raises(MissingEnvironment, match="without token ids") as caught:
        VllmServer(server.url, None, "adapter", tmp_path)
    assert "0.10.2" in caught.value.fix


def test_fewer_answers_than_asked_for_are_told(server: Server, tmp_path: Path) -> None:
    engine = VllmServer(server.url, None, "adapter", tmp_path)
    server.replies["/v1/completions"] = lambda body: (200, completions(body | {"n": 1}))
    with pytest.raises(MissingEnvironment, match="1 answers to a prompt where 3 are asked for"):
        engine.sample([[1]], 3, SAMPLING, 0)


@pytest.mark.parametrize("logprob", [-0.7, 12.5])
def test_logprobs_of_another_distribution_are_refused_at_the_start(
    server: Server, tmp_path: Path, logprob: float
) -> None:
    """Of the only token that top_k = 1 leaves; a positive one is a logit."""
    raw = {"token_logprobs": [0.0, logprob]}
    server.replies["/v1/completions"] = lambda body: (200, completions(body, logprobs=raw))
    with pytest.raises(MissingEnvironment, match="another distribution") as caught:
        VllmServer(server.url, None, "adapter", tmp_path)
    assert "--logprobs-mode processed_logprobs" in caught.value.fix
    assert server.asked("/v1/completions")[0]["top_k"] == 1


def test_a_server_without_the_route_of_the_weights_is_told_which_switch_it_needs(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(MissingEnvironment, match="runs without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1") as caught:
        VllmServer(server.url, None, "adapter", tmp_path).sync(adapted(), 1)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 python" in caught.value.fix
    whole = Policy(tiny_model("llama"), torch.float32, 256)
    with pytest.raises(MissingEnvironment, match="runs without VLLM_SERVER_DEV_MODE=1"):
        VllmServer(server.url, None, "reload", tmp_path).sync(whole, 1)


def test_an_adapter_is_named_anew_at_each_sync_and_the_one_before_is_taken_off(server: Server, tmp_path: Path) -> None:
    for route in ("load", "unload"):
        server.replies[f"/v1/{route}_lora_adapter"] = (200, "Success")
    engine, policy = VllmServer(server.url, None, "adapter", tmp_path / "weights"), adapted()
    engine.sync(policy, 1)
    engine.sync(policy, 1)
    first, second = (body["lora_name"] for body in server.asked("/v1/load_lora_adapter"))
    assert first != second
    assert server.asked("/v1/unload_lora_adapter") == [{"lora_name": first}]
    folder = Path(server.asked("/v1/load_lora_adapter")[1]["lora_path"])
    assert folder.is_absolute() and list(folder.parent.iterdir()) == [folder]
    assert (folder / "adapter_model.safetensors").stat().st_mode & 0o044 == 0o044
    engine.sample([[1]], 1, SAMPLING, 0)
    assert server.asked("/v1/completions")[-1]["model"] == second


def test_a_reload_forgets_the_prompts_of_the_old_weights(server: Server, tmp_path: Path) -> None:
    server.replies |= {"/collective_rpc": (200, {"results": [None]}), "/reset_prefix_cache": (200, {"success": True})}
    VllmServer(server.url, None, "reload", tmp_path).sync(Policy(tiny_model("llama"), torch.float32, 256), 1)
    assert [path for path, _, _ in server.seen][-2:] == ["/collective_rpc", "/reset_prefix_cache"]
    server.replies["/reset_prefix_cache"] = (200, {"success": False})
    with pytest.raises(MissingEnvironment, match="old weights"):
        VllmServer(server.url, None, "reload", tmp_path).sync(Policy(tiny_model("llama"), torch.float32, 256), 1)


def test_a_server_that_lost_the_adapter_is_told(server: Server, tmp_path: Path) -> None:
    engine = VllmServer(server.url, None, "adapter", tmp_path)
    server.replies["/v1/completions"] = (404, {"error": {"message": "The model does not exist."}})
    with pytest.raises(MissingEnvironment, match=r"no longer has base: .* does not exist") as caught:
        engine.sample([[1]], 1, SAMPLING, 0)
    assert "Resume" in caught.value.fix


def test_answers_stay_with_their_prompts_and_seeds_differ(server: Server, tmp_path: Path) -> None:
    """The later a prompt, the earlier its answer comes."""

    def late(body: Any) -> Reply:
        time.sleep(0.3 - 0.1 * body["prompt"][0])
        choices = completions(body, token_ids=[body["prompt"][0], 258])["choices"]
        for choice in choices:
            choice["logprobs"] = {"token_logprobs": [-1.0, -float(choice["index"])]}
        return 200, {"choices": choices[::-1]}

    engine = VllmServer(server.url, None, "adapter", tmp_path)
    server.replies["/v1/completions"] = late
    answers = engine.sample([[0], [1], [2]], 2, SAMPLING, seed=7)
    assert [[int(answer.ids[0]) for answer in group] for group in answers] == [[0, 0], [1, 1], [2, 2]]
    assert all(answer.ended for group in answers for answer in group)
    assert [[answer.logprobs.tolist() for answer in group] for group in answers] == [[[-1.0, 0.0], [-1.0, -1.0]]] * 3
    seeds = {body["seed"] for body in server.asked("/v1/completions")[1:]}
    assert len(seeds) == 3


def test_what_poll_raises_ends_the_waiting(server: Server, tmp_path: Path) -> None:
    engine = VllmServer(server.url, None, "adapter", tmp_path)
    release = threading.Event()
    server.replies["/v1/completions"] = lambda body: (200 if release.wait(20) else 500, completions(body))
    started = time.monotonic()

    def poll() -> None:
        if time.monotonic() - started > 0.2:
            raise Preempted("SIGTERM")

    with pytest.raises(Preempted):
        engine.sample([[1]] * 3, 1, SAMPLING, 0, poll)
    assert time.monotonic() - started < 5
    release.set()


def test_without_a_network_the_option_is_named(tmp_path: Path) -> None:
    """In a process of its own: what refuses connections cannot be taken back."""
    program = (
        "from pathlib import Path; from tunekit import offline; offline.enter()\n"
        "from tunekit.errors import MissingEnvironment; from tunekit.rollout.vllm import VllmServer\n"
        f"try: VllmServer({CLOSED!r}, None, 'adapter', Path('.'))\n"
        "except MissingEnvironment as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("--offline: ") and CLOSED in done.stdout and "bug" not in done.stdout


def test_the_key_comes_from_the_environment_and_goes_to_no_other_engine(
    server: Server, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password netrc-secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    OpenAIEndpoint(server.url, None, tokenizer)
    VllmServer(server.url, None, "adapter", tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY")
    OpenAIEndpoint(server.url, None, tokenizer)
    assert [headers.get("Authorization") for _, headers, _ in server.seen] == ["Bearer sk-1", None, None, None]
    server.replies["/v1/models"] = (401, {"error": {"message": "no key"}})
    with pytest.raises(MissingEnvironment, match="no key") as caught:
        OpenAIEndpoint(server.url, "m", tokenizer)
    assert "OPENAI_API_KEY" in caught.value.fix


def test_an_endpoint_is_asked_in_text_and_its_text_is_read_with_the_policys_tokenizer(
    server: Server, tokenizer: Any
) -> None:
    ids = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    said = {"text": "Hey", "finish_reason": "stop"}
    server.replies["/v1/completions"] = lambda body: (200, completions(body, **said))
    endpoint = OpenAIEndpoint(server.url, "base", tokenizer)
    prompt = ids("<|im_start|>Hi<|im_end|>")
    sampling = Sampling(max_new_tokens=8, temperature=0.5, top_p=0.9, ends=frozenset({256, 258}))
    (answer,) = endpoint.sample([prompt], 1, sampling, 0)[0]
    asked = server.asked("/v1/completions")[0]
    assert asked.pop("seed") >= 0
    assert asked == {
        "model": "base",
        "prompt": "<|im_start|>Hi<|im_end|>",
        "n": 1,
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["<|im_end|>", "<|endoftext|>"],
    }
    assert answer.ids.tolist() == [*ids("Hey"), 258] and answer.ended and answer.logprobs is None
    said["finish_reason"] = "length"
    (answer,) = endpoint.sample([prompt], 1, sampling, 0)[0]
    assert answer.ids.tolist() == ids("Hey") and not answer.ended
    said["text"] = "12345678901"
    (answer,) = endpoint.sample([prompt], 1, sampling, 0)[0]
    assert answer.ids.tolist() == ids("12345678") and not answer.ended
    said["text"] = "a<|im_end|>b"
    (answer,) = endpoint.sample([prompt], 1, sampling, 0)[0]
    assert answer.ids.tolist() == [*ids("a"), 258] and answer.ended
    said["text"] = ""
    (answer,) = endpoint.sample([prompt], 1, sampling, 0)[0]
    assert answer.ids.tolist() == [258] and answer.ended


def test_the_first_token_of_a_prompt_is_left_to_a_server_that_writes_it(server: Server) -> None:
    tokenizer: Any = load_tokenizer(locate("tiny-random/llama"))
    tokenizer.bos_token = "<|im_start|>"
    ids = tokenizer("<|im_start|>Hi")["input_ids"]
    OpenAIEndpoint(server.url, "base", tokenizer).sample([ids], 1, SAMPLING, 0)
    first = [("<|im_start|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|im_start|> $A", None, first)
    assert tokenizer("Hi")["input_ids"] == ids
    OpenAIEndpoint(server.url, "base", tokenizer).sample([ids], 1, SAMPLING, 0)
    assert [body["prompt"] for body in server.asked("/v1/completions")] == ["<|im_start|>Hi", "Hi"]


def test_an_endpoint_has_no_top_k_and_may_not_list_its_models(server: Server, tokenizer: Any) -> None:
    del server.replies["/v1/models"]
    endpoint = OpenAIEndpoint(server.url, "mine", tokenizer)
    endpoint.sample([[1]], 1, SAMPLING, 0)
    assert server.asked("/v1/completions")[0]["model"] == "mine"
    with pytest.raises(RecipeError, match=r"rollout\.top_k: 5"):
        endpoint.sample([[1]], 1, Sampling(4, top_k=5), 0)
    with pytest.raises(RecipeError, match="does not list its models"):
        OpenAIEndpoint(server.url, None, tokenizer)
