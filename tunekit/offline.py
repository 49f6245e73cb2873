"""Without a network: the libraries are told, and a connection that one tries all the same is refused."""

import os
import sys
from typing import Any

from tunekit.errors import MissingEnvironment

SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_entered = False


def enter() -> None:
    """From here on this process and those it starts connect to nothing; to be called before a library is imported."""
    global _entered
    os.environ.update(dict.fromkeys(SWITCHES, "1"), WANDB_MODE="offline", PIP_NO_INDEX="1")
    if not _entered:
        sys.addaudithook(_refuse_connections)
        _entered = True


def entered() -> bool:
    """Whether this process may not use the network: after `enter`, or where the environment says so."""
    return _entered or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _refuse_connections(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        return
    address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[:2]
    if not isinstance(address, str | bytes):  # that would be the path of a Unix socket, on this machine
        raise MissingEnvironment(f"--offline: something tried to connect to {address}", "This is a bug of tunekit.")
