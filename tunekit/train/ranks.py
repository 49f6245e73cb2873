"""The processes of a run, before and beside their group: which one this is, and what they tell each other over a store.

A store outlives the collectives of a group: data is prepared before one is formed, waits over it have no limit, and a
process that fails tells the others why before its connections close.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import Store

from tunekit.errors import OUTCOMES, MissingEnvironment, Preempted, RankFailed, TunekitError
from tunekit.train.signals import Stopped

log = logging.getLogger("tunekit")

POLL = 0.05  # seconds between two looks at the store
LINGER = 5.0  # seconds that a process which failed waits until the others have read why
GATHERED = 2.0  # seconds in which processes that lost another one say so
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOST = ("gloo", "nccl", "connection", "timed out waiting", "socket", "broken pipe", "store")  # in torch's own errors
FAILED = "failed"


@dataclass
class Ranks:
    """rank, world_size: of all processes;  local_rank: on this machine;  attempt: restarts so far, by torchrun"""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    attempt: int = 0
    store: Store | None = None
    turn: int = 0  # exchanges so far: all processes make the same ones in the same order

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process (in JSON's types), in all of them, however long they wait."""
        if self.store is None:
            return make()
        self.turn += 1
        key = f"told/{self.turn}"
        if self.is_main:
            value = make()
            self.store.set(key, json.dumps(value))
            return value
        self._wait(key)
        return json.loads(self.store.get(key))

    def main_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns here, where the first process was let do it before: the others find its caches."""
        if self.store is None:
            return make()
        self.turn += 1
        key = f"done/{self.turn}"
        if not self.is_main:
            self._wait(key)
            return make()
        value = make()
        self.store.set(key, "")
        return value

    def _wait(self, key: str) -> None:
        assert self.store is not None
        while not self.store.check([key]):
            if self.store.check([FAILED]):
                raise RankFailed("another process failed")
            time.sleep(POLL)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block an error of one process ends all of them: each raises it, and only one as its own."""
        try:
            yield
        except BaseException as error:
            if self.store is None or (isinstance(error, RankFailed) and error.told):
                raise
            if (told := self._told(error)) is error:
                raise
            raise told from error

    def _told(self, error: BaseException) -> BaseException:
        """The error to end with: that of the process that failed first, or this one, after the others know of it."""
        assert self.store is not None
        own = error.error if isinstance(error, Stopped) else error
        if is_lost(own):
            return self._after_loss(own)
        code = own.exit_code if isinstance(own, TunekitError) else 1
        record = json.dumps({"rank": self.rank, "code": code, "error": str(own) or type(own).__name__})
        try:
            first = json.loads(self.store.compare_set(FAILED, "", record))
            if first["rank"] != self.rank:
                self.store.add("read", 1)
                return _followed(first)
        except (RuntimeError, ValueError):  # the first process, with the store, is gone already
            return error if not isinstance(own, Preempted) else _alone(0, str(own))
        if self.is_main:
            self._linger()
        return error

    def _after_loss(self, error: BaseException) -> BaseException:
        """Who is gone: whoever failed said so, and whoever lost a connection only says that."""
        assert self.store is not None
        try:
            self.store.set(f"lost/{self.rank}", "")
            until = time.monotonic() + GATHERED
            while time.monotonic() < until:
                if self.store.check([FAILED]):
                    self.store.add("read", 1)
                    return _followed(json.loads(self.store.get(FAILED)))
                time.sleep(POLL)
            gone = [rank for rank in range(self.world_size) if not self.store.check([f"lost/{rank}"])]
        except RuntimeError:
            gone = [0]
        speaks = self.rank == min({*range(self.world_size)} - {*gone}, default=self.rank)
        if self.is_main:
            self._linger()
        return _alone(gone[0] if gone else None, " ".join(str(error).split())[:200], told=not speaks)

    def _linger(self) -> None:
        """The first process holds the store: it waits until all others have read why, or are gone."""
        assert self.store is not None
        with suppress(RuntimeError):
            if dist.is_initialized():
                dist.destroy_process_group()  # which ends the waits of the others
            until = time.monotonic() + LINGER
            while self.store.add("read", 0) < self.world_size - 1 and time.monotonic() < until:
                time.sleep(POLL)


def is_lost(error: BaseException) -> bool:
    """Whether a process lost another one: an error of its own would be another."""
    if isinstance(error, RankFailed):
        return True
    named = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
    return named or isinstance(error, dist.DistError)


def _followed(first: dict[str, Any]) -> TunekitError:
    """The error of another process, which says it itself."""
    error = RankFailed(f"rank {first['rank']}: {first['error']}")
    error.exit_code, error.told = first["code"], True
    return error


def _alone(gone: int | None, why: str, *, told: bool = False) -> RankFailed:
    who = "another process" if gone is None else f"rank {gone}"
    error = RankFailed(
        f"{who} is gone or hangs: {why}",
        "Training goes on from the newest checkpoint with resume=auto; memory that is short is the usual cause.",
    )
    error.told = told
    return error


def _end_without_agent(agent: int) -> None:
    """An agent that was killed ends nobody: its workers notice it themselves."""
    while os.getppid() == agent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LINGER)
    os._exit(RankFailed.exit_code)


def join() -> Ranks:
    """This process among those that a launcher (torchrun, accelerate, Kubernetes, Slurm, ours) started; alone: 1 of 1.

    Raises `MissingEnvironment` where the launcher named only some of what is needed.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world_size == 1:
        return Ranks(attempt=attempt)
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise MissingEnvironment(
            f"WORLD_SIZE: {world_size}: {missing[0]} is not set", "Start tunekit itself, or torchrun -m tunekit."
        )
    if OUTCOMES in os.environ:
        threading.Thread(target=_end_without_agent, args=(os.getppid(),), daemon=True).start()
    rank = int(os.environ["RANK"])
    # With a store of torchrun's own, what an attempt that failed wrote is still there.
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: Store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=rank == 0 and not shared,
        timeout=timedelta(seconds=300),
        wait_for_workers=False,
        multi_tenant=True,
    )
    prefix = f"tunekit/{attempt if os.environ.get('GROUP_WORLD_SIZE', '1') == '1' else 0}"
    return Ranks(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)), attempt, dist.PrefixStore(prefix, store))
