"""The processes of a run, before and beside their group: which one this is, and what they tell each other over a store.

A store outlives the collectives of a group: data is prepared before one is formed, waits over it have no limit, and a
process that fails tells the others why before its connections close.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import Store

from tunekit.errors import OUTCOMES, MissingEnvironment, RankFailed, TunekitError, leave_outcome
from tunekit.train.signals import Stopped

log = logging.getLogger("tunekit")

POLL = 0.05  # seconds between two looks at the store
LINGER = 5.0  # seconds that the first process waits, if it failed, until the others have read why
STARTING = 60.0  # seconds in which all processes should be there, from when one fails
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
    ended: bool = False  # by an error that the others know of

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

    def meet(self) -> None:
        """Waits, without limit, until all processes are here."""
        if self.store is None:
            return
        self.turn += 1
        self.store.set(f"here/{self.turn}/{self.rank}", "")
        for rank in range(self.world_size):
            self._wait(f"here/{self.turn}/{rank}")

    def _wait(self, key: str) -> None:
        assert self.store is not None
        while not self.store.check([key]):
            if self.store.check([FAILED]):
                raise _Lost
            time.sleep(POLL)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block an error of one process ends all of them: each raises it, and only one as its own."""
        try:
            yield
        except BaseException as error:
            if self.store is None or self.ended:
                raise
            self.ended = True
            with undisturbed():  # an agent that saw another process end sends SIGTERM to this one
                told = self._told(self.store, error)
            if told is error:
                raise
            raise told from error

    def _told(self, store: Store, error: BaseException) -> BaseException:
        """The error to end with: that of the process that failed first, or this one, after the others know of it."""
        own = error.error if isinstance(error, Stopped) else error
        try:
            if is_lost(own):
                return self._after_loss(store, own)
            code = own.exit_code if isinstance(own, TunekitError) else 1
            record = json.dumps({"rank": self.rank, "code": code, "error": str(own) or type(own).__name__})
            first = json.loads(store.compare_set(FAILED, "", record))
            if first["rank"] != self.rank:
                return self._followed(store, first)
            if self.is_main:
                self._hold(store, LINGER, lambda: store.add("read", 0) < self.world_size - 1)
            return error
        except RuntimeError:  # the store, and with it the first process
            return error if not is_lost(own) else _alone(0, False, speaks=self.rank == 1)

    def _after_loss(self, store: Store, error: BaseException) -> BaseException:
        """Who is gone: whoever failed says so, and whoever lost a connection says only that."""
        store.set(f"lost/{self.rank}", "")
        _leave_group()
        hangs = "timed out" in str(error).lower()
        until = time.monotonic() + GATHERED
        while time.monotonic() < until:
            if store.check([FAILED]):
                return self._followed(store, json.loads(store.get(FAILED)))
            time.sleep(POLL)
        silent = [rank for rank in range(self.world_size) if not store.check([f"lost/{rank}"])]
        processes = {rank: store.get(f"process/{rank}").decode() for rank in silent}
        # After a broken connection, one that is there and silent is only slow.
        gone = [rank for rank in silent if hangs or not _is_alive(processes[rank])]
        for rank in gone if hangs else []:
            _end(processes[rank])  # it would not end by itself
        if self.is_main and len(silent) < self.world_size - 1:
            self._hold(store, GATHERED, lambda: True)
        speaks = self.rank == min({*range(self.world_size)} - {*silent})
        return _alone(gone[0] if gone else None, hangs, speaks=speaks)

    def _followed(self, store: Store, first: dict[str, Any]) -> TunekitError:
        """The error of another process, which says it itself."""
        store.add("read", 1)
        error = RankFailed(f"rank {first['rank']}: {first['error']}")
        error.exit_code, error.told = first["code"], True
        return error

    def _hold(self, store: Store, seconds: float, needed: Callable[[], bool]) -> None:
        """The first process has the store: it waits until the others have read why it ends, or are gone."""
        _leave_group()
        last = time.monotonic() + STARTING
        while not store.check([f"process/{rank}" for rank in range(self.world_size)]) and time.monotonic() < last:
            time.sleep(POLL)  # one that is only starting would seek the store for minutes
        until = time.monotonic() + seconds
        while needed() and time.monotonic() < until:
            time.sleep(POLL)


def _leave_group() -> None:
    """Ends the waits of the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def undisturbed() -> Iterator[None]:
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Lost(Exception):
    """What was waited for will not come: another process failed."""


def is_lost(error: BaseException) -> bool:
    """Whether a process lost another one: an error of its own would be another."""
    named = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
    return named or isinstance(error, dist.DistError | _Lost)


def _end(process: str) -> None:
    """Ends a process, named as `join` does, where it is one of this machine."""
    machine, pid = process.rsplit("/", 1)
    if machine == socket.gethostname():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _is_alive(process: str) -> bool:
    """Whether a process is there, as far as this machine knows."""
    machine, pid = process.rsplit("/", 1)
    if machine != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _alone(gone: int | None, hangs: bool, *, speaks: bool) -> RankFailed:
    who = "another process" if gone is None else f"rank {gone}"
    what = "did not answer within distributed.timeout: it hangs" if hangs else "is gone: its connection broke"
    error = RankFailed(f"{who} {what}", "resume=auto goes on from the newest checkpoint.")
    error.told = not speaks
    return error


def _end_without_agent(agent: int) -> None:
    """An agent that was killed ends nobody: its workers notice it themselves."""
    while os.getppid() == agent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LINGER)
    os._exit(RankFailed.exit_code)


def _end_with_others(ranks: Ranks) -> None:
    """Where another process failed and this one still waits for it (NCCL does not notice), it ends the same way."""
    assert ranks.store is not None
    try:
        while not ranks.store.check([FAILED]):
            time.sleep(1)
        first = json.loads(ranks.store.get(FAILED))
    except RuntimeError:
        return
    if first["rank"] == ranks.rank:
        return
    time.sleep(LINGER + GATHERED)
    if not ranks.ended:
        os._exit(leave_outcome(first["code"]))


def join() -> Ranks:
    """This process among those that a launcher (torchrun, accelerate, Kubernetes, Slurm, ours) started; alone: 1 of 1.

    Raises `MissingEnvironment` where the launcher named only some of what is needed.
    """
    if "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise MissingEnvironment(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks, each of which would be a run of its own",
            "Start one task on each machine and set distributed.processes and nodes, or see tunekit launch.",
        )
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
    several = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
    if shared and several and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise MissingEnvironment(
            "torchrun on several machines keeps the store of an attempt that failed, and the next one would read it",
            "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all of them, or --max-restarts 0.",
        )
    prefix = f"tunekit/{0 if several else attempt}"
    store = dist.PrefixStore(prefix, store)
    store.set(f"process/{rank}", f"{socket.gethostname()}/{os.getpid()}")
    ranks = Ranks(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)), attempt, store)
    threading.Thread(target=_end_with_others, args=(ranks,), daemon=True).start()
    return ranks
