"""A conversation with a model: at a terminal, line by line from a pipe, or one question."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.data.rows import Prompt
from tunekit.errors import DataError, RecipeError, TunekitError
from tunekit.models.generate import Answer, prompt_ids, seed_sampling, stream
from tunekit.models.serve import context_of, load_for_inference, trained_preparation
from tunekit.stages.present import CONTROL_CHARACTERS

log = logging.getLogger("tunekit")

HELP = """\
/system TEXT  set the system prompt and begin anew (without TEXT: no system prompt of yours)
/reset        forget the conversation, keep the system prompt
/help         this list
/exit         leave (or Ctrl-D)
Ctrl-C stops an answer; what was said of it stays in the conversation. At the prompt it leaves."""


@dataclass
class Session:
    """A loaded model and what has been said: user and assistant in turns, below a system prompt if there is one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    system: str | None
    sampling: dict[str, Any]  # max_new_tokens, temperature, top_p
    messages: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, text: str, write: Callable[[str], None]) -> Answer:
        """The model's answer, streamed to `write` and added to the conversation; `RecipeError` if it cannot fit."""
        messages, ids = self._fitting([*self.messages, {"role": "user", "content": text}])
        context = context_of(self.model)
        limit = self.sampling["max_new_tokens"]
        room = limit if context is None else min(limit, context - len(ids))
        answer = stream(self.model, self.tokenizer, ids, write, **{**self.sampling, "max_new_tokens": room})
        if answer.text:
            self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    def _fitting(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
        """`messages` and their ids, the oldest turns left out (said aloud) until an answer fits into the context."""
        context = context_of(self.model)
        kept = messages
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        while True:
            ids = prompt_ids(self.tokenizer, Prompt((*system, *kept), "this conversation"))
            if context is None or len(ids) + min(self.sampling["max_new_tokens"], context // 4) <= context:
                break
            if len(kept) == 1 and len(ids) < context:
                break
            if len(kept) == 1:
                raise RecipeError(
                    f"the message and its system prompt have {len(ids):,} tokens, the model's context {context:,}",
                    "Shorten the message or the system prompt.",
                )
            kept = kept[2:]
        if kept is not messages:
            left_out = (len(messages) - len(kept)) // 2
            log.info(
                "the conversation is longer than the context of %s tokens: its oldest %d questions are left out from "
                "here on (/reset begins anew)",
                f"{context:,}",
                left_out,
            )
        return kept, ids


def run(name: str, *, prompt: str | None, system: str | None, seed: int | None, as_json: bool, **sampling: Any) -> None:
    """Talks until the input ends; `sampling` is `max_new_tokens`, `temperature` and `top_p`."""
    at_terminal = prompt is None and sys.stdin.isatty()
    if at_terminal and as_json:
        raise RecipeError("--json is for one question (--prompt) or for lines from a pipe")
    if prompt is not None and not prompt.strip():
        raise RecipeError("--prompt is empty")
    if at_terminal:
        log.info("loading %s", name)
    model, tokenizer = load_for_inference(name)
    prompt_ids(tokenizer, Prompt(({"role": "user", "content": "?"},), name))  # without a template: fail now, not later
    seed_sampling(seed)
    session = Session(model, tokenizer, trained_preparation(name)["system"] if system is None else system, sampling)
    if prompt is not None:
        _answer_plainly(session, prompt, as_json)
    elif at_terminal:
        _talk(session, name)
    else:
        for line in _turns(session, _piped_lines(), lambda text: print(text, file=sys.stderr)):
            _answer_plainly(session, line, as_json)


def obey(session: Session, line: str) -> str:
    """Carries out the command in `line` and returns what to say about it."""
    command, _, argument = line.rstrip().partition(" ")
    if command == "/help":
        return HELP
    if command == "/reset":
        session.messages = []
        return "the conversation is forgotten"
    if command == "/system":
        session.system, session.messages = argument.strip() or None, []
        return "the system prompt is set, and the conversation begins anew" if session.system else "no system prompt"
    return f"{command} is no command (/help lists them); a message that begins with / needs a space before it"


def _turns(session: Session, lines: Iterator[str], say: Callable[[str], None]) -> Iterator[str]:
    """The lines that are for the model; commands are carried out, empty lines passed over."""
    for line in lines:
        if line.split()[:1] == ["/exit"] and line.startswith("/"):
            return
        if line.startswith("/"):
            say(obey(session, line))
        elif line.strip():
            yield line.strip()


def _piped_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"standard input:{number}: byte 0x{line[error.start]:02x} is not UTF-8") from error


def _answer_plainly(session: Session, text: str, as_json: bool) -> None:
    """Prints the answer and nothing else."""
    answer = session.ask(text, (lambda piece: None) if as_json else _write)
    if answer.interrupted:
        raise KeyboardInterrupt
    if not as_json:
        print(flush=True)
        return
    seconds = round(answer.seconds, 3)
    speed = round(answer.num_tokens / answer.seconds, 1)
    facts = {"tokens": answer.num_tokens, "seconds": seconds, "tokens_per_second": speed, "ended": answer.ended}
    print(json.dumps({"prompt": text, "answer": answer.text, **facts}, ensure_ascii=False), flush=True)


def _write(piece: str) -> None:
    print(piece.translate(CONTROL_CHARACTERS) if sys.stdout.isatty() else piece, end="", flush=True)


def _talk(session: Session, name: str) -> None:
    with contextlib.suppress(ImportError):  # not in every Python; it gives `input` line editing and history
        import readline  # noqa: F401
    context = context_of(session.model)
    print(
        f"{name} on {session.model.device} in {str(session.model.dtype).removeprefix('torch.')}"
        + (f", context of {context:,} tokens" if context else "")
        + ". /help lists the commands, Ctrl-D leaves.\n"
    )
    for text in _turns(session, _typed_lines(), lambda said: print(f"{said}\n")):
        try:
            answer = session.ask(text, _write)
        except TunekitError as error:
            print(f"{error}\n")
            continue
        note = "" if answer.ended else f" [stopped after {answer.num_tokens} tokens]"
        print(f"{note}\n", flush=True)


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield input("> " if sys.stdout.isatty() else "")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            raise
