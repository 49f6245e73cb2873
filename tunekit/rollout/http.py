"""JSON over HTTP with a server that samples: timeouts, retries, and errors that say what the server said."""

import ipaddress
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from tunekit.errors import MissingEnvironment, RecipeError

CONCURRENT = 64  # requests in flight: a server batches what it has at hand
CONNECT_SECONDS, READ_SECONDS = 10, 1800  # an answer comes whole, so the second is that of a whole generation
POLL_SECONDS = 0.5
EXAMPLE = "Accepted are http and https, such as http://127.0.0.1:8000"
SHOWN = 400  # characters of what a server says
# A connection that does not open and an overloaded server are tried again after 0, 1 and 2 seconds; a request that was
# cut off, once: where it hangs, it would hang again.
RETRIES = Retry(
    total=3,
    read=1,
    redirect=False,
    allowed_methods=None,
    status_forcelist=(429, 500, 502, 503, 504),
    backoff_factor=0.5,
    raise_on_status=False,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Refused(MissingEnvironment):
    """The server answered with another status than 200."""

    def __init__(self, url: str, status: int, said: str) -> None:
        super().__init__(f"{url} answers {status}: {said}", "Look at the server's log.")
        self.status, self.said = status, said


class Client:
    """Requests to one server; `start` tells how it is started, `key` is its bearer token."""

    def __init__(self, base_url: str, start: str, key: str = "") -> None:
        """Raises `RecipeError` for what is no address of a server."""
        self.url = address(base_url)
        self.start = start
        self._session = requests.Session()
        # Of each request anew: a server closes a connection that idles while the weights are trained.
        self._session.headers["Connection"] = "close"
        self._session.auth = _signature(key)
        # A proxy of the environment reaches other machines, not this one.
        self._session.trust_env = not _is_loopback(self.url)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=CONCURRENT, max_retries=RETRIES))

    def get(self, path: str) -> Any:
        return _parsed(self.url + path, self._send("GET", path, None))

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """What the server answers to `body`, as JSON."""
        return _parsed(self.url + path, self.post(path, body))

    def post(self, path: str, body: dict[str, Any]) -> str:
        """What the server answers to `body`, as it stands.

        Raises `MissingEnvironment` where it is not reached or breaks off, and `Refused` where it does not do it.
        """
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> str:
        url = self.url + path
        timeout = (CONNECT_SECONDS, READ_SECONDS)
        try:
            answer = self._session.request(method, url, json=body, timeout=timeout, allow_redirects=False)
        except MissingEnvironment as error:  # where no connection is allowed
            raise MissingEnvironment(
                f"--offline: the answers are to come from {self.url}, which is a connection",
                "Leave out --offline, or set rollout.engine: builtin",
            ) from error
        except requests.RequestException as error:
            raise MissingEnvironment(f"no answer from {url}: {_reason(error)}", self.start) from error
        if answer.status_code != 200:
            raise Refused(url, answer.status_code, _said(answer))
        return answer.text

    def served(self) -> list[str]:
        """The names of the models that the server has, without adapters."""
        answer = self.get("/v1/models")
        try:
            return [str(model["id"]) for model in answer["data"] if not model.get("parent")]
        except (TypeError, KeyError, AttributeError) as error:
            raise MissingEnvironment(f"{self.url}/v1/models lists no models: {_shown(answer)}", self.start) from error

    def model(self, wanted: str | None) -> str:
        """The name of the model to ask: `wanted`, or the only one that is served. Raises `RecipeError`."""
        served = self.served()
        if wanted in served:
            return str(wanted)
        if wanted is None and len(served) == 1:
            return served[0]
        problem = "several models are served" if wanted is None else f"{wanted!r} is not served"
        raise RecipeError(
            f"rollout.served_model: {problem} at {self.url}",
            f"It has: {', '.join(served) or 'none'}. Name one of them.",
        )

    def choices(self, body: dict[str, Any]) -> list[Any]:
        """The answers to a completion request, in order: as many as it asks for."""
        answer = self.ask("/v1/completions", body)
        try:
            found = sorted(answer["choices"], key=lambda choice: choice["index"])
        except (TypeError, KeyError) as error:
            raise MissingEnvironment(f"{self.url} gives no completions: {_shown(answer)}", self.start) from error
        if len(found) != body["n"]:
            raise MissingEnvironment(
                f"{self.url} gives {len(found)} answers to a prompt where {body['n']} are asked for",
                "It does not know `n`: set rollout.num_generations: 1, or take another server.",
            )
        return found

    def close(self) -> None:
        self._session.close()


def at_once(work: Callable[[Item], Result], items: Sequence[Item], poll: Callable[[], None]) -> list[Result]:
    """`work` of each of the items, many at a time, in order; `poll` is called while it waits.

    What one of them, or `poll`, raises is raised, and what has not begun is left out.
    """
    pool = ThreadPoolExecutor(CONCURRENT)
    try:
        futures = [pool.submit(work, item) for item in items]
        waiting = set(futures)
        while waiting:
            poll()
            done, waiting = wait(waiting, POLL_SECONDS, "FIRST_EXCEPTION")
            for future in done:
                future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def prompt_seed(seed: int, index: int) -> int:
    """A seed of 31 bits for one prompt: equal prompts of one batch are answered differently."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0] >> 1)


def address(base_url: str) -> str:
    """`base_url` without the `/v1` of its routes. Raises `RecipeError` for what is no address of a server."""
    problem = "is no address of a server"
    try:
        parts = urlsplit(base_url)
        parts.port  # noqa: B018, which is where urlsplit looks at it
    except ValueError:
        raise RecipeError(f"rollout.base_url: {base_url!r} {problem}", EXAMPLE) from None
    if parts.username or parts.password:
        raise RecipeError("rollout.base_url: a user name or password has no place in it", EXAMPLE)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise RecipeError(f"rollout.base_url: {base_url!r} {problem}", EXAMPLE)
    return base_url.rstrip("/").removesuffix("/v1")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _signature(key: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign  # also without a key: else requests would look for one in ~/.netrc


def _parsed(url: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise MissingEnvironment(
            f"{url} does not answer in JSON: {_shown(text)}", "Is it another program that listens there?"
        ) from error


def _said(answer: requests.Response) -> str:
    """The message of an error, which servers wrap in different ways."""
    try:
        body = answer.json()
        inner = body.get("error", body)
        return _shown(inner.get("message") or inner.get("detail") or body)
    except (ValueError, AttributeError):
        return _shown(answer.text or answer.reason)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _reason(error: BaseException) -> str:
    """What the operating system said, below the layers of libraries."""
    found, cause = "", error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            found = cause.strerror
        elif cause.__cause__ is None and cause.__context__ is None and not found:
            found = str(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return found or type(error).__name__
