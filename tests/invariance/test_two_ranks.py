"""Two processes make the step of one: in loss, every gradient, its norm, every metric, and what is held out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RELATIVE = 1e-6
HERE = Path(__file__).parent
CASES = [
    f"{stage} {strategy} {weights}"
    for stage in ("sft", "dpo", "kto", "reward", "ppo", "grpo", "rloo")
    for strategy in ("ddp", "fsdp2")
    for weights in ("full", "lora")
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; they make all steps in one go, since each takes seconds to start."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
        "OMP_NUM_THREADS": "1",
    }
    common |= {"TUNEKIT_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_ranks.py"), str(folder / f"{rank}.json")],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_make_the_step_of_one(found: list[dict[str, Any]], case: str) -> None:
    for rank in found:
        differences = rank[case]
        assert differences.pop("finite") and all(differences.pop("counts"))
        assert max(differences.values()) < RELATIVE, differences
