"""Without a network: the libraries are told, and a connection that one tries all the same is refused."""

import os
import socket
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
    if event == "socket.__new__":
        if arguments[1] in (socket.AF_INET, socket.AF_INET6):
            raise MissingEnvironment("--offline: something tried to open a socket", "This is a bug of tunekit.")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        raise MissingEnvironment(f"--offline: something tried to look up {arguments[0]}", "This is a bug of tunekit.")
