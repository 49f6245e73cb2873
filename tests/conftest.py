"""Settings that must stand before torch or a Hugging Face library is imported; the tests' subprocesses inherit them."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The workers of pytest-xdist share the cores: more than one thread each makes all of them slower. They inherit what was
# set here for the process that starts them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

SLOW = ("policy", "e2e")  # folders whose tests take seconds each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.parent.name not in SLOW)
