"""What the comparisons share: each side in a process of its own with one thread, its rate and its peak memory."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

Side = Callable[[argparse.Namespace], dict[str, float]]


def compare(
    parser: argparse.ArgumentParser, sides: dict[str, Side], unit: str, pairs: list[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """Runs every side, prints its figures, and of each of `pairs` how much faster and smaller the first is."""
    parser.add_argument("--side", choices=list(sides), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with tempfile.TemporaryDirectory() as scratch:
            arguments.scratch = scratch
            print(json.dumps(sides[arguments.side](arguments)))
        return {}
    results = {}
    for side in sides:
        command = [sys.executable, *sys.argv, "--side", side]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        results[side] = result = json.loads(output.splitlines()[-1])
        more = "".join(f"   {name} {value:.4g}" for name, value in result.items() if name not in ("rate", "peak_gb"))
        print(f"{side:24} {result['rate']:.4f} {unit}/CPU s   {result['peak_gb']:5.2f} GB peak{more}", flush=True)
    for ours, theirs in pairs:
        first, second = results[ours], results[theirs]
        print(
            f"{ours} / {theirs}: {first['rate'] / second['rate']:.2f} times the {unit}, "
            f"{first['peak_gb'] / second['peak_gb']:.2f} of the memory"
        )
    return results


def measured(start: float, count: float, **more: Any) -> dict[str, float]:
    """`count` things in the CPU time of this process since `start`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"rate": count / (time.process_time() - start), "peak_gb": peak, **more}
