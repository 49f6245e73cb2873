"""Makes examples/data/arithmetic: word problems of one step, each with its answer; none is in both files.

python examples/make_arithmetic.py
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "arithmetic"
SIZES = {"train": 400, "valid": 100}
NAMES = ("Anna", "Ben", "Lucy", "Mia", "Omar", "Sam", "Tom", "Yuki")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shirts", "stamps")


def problem(rng: random.Random) -> tuple[str, int]:
    """A question about two numbers from 2 to 20, and its answer."""
    name, thing, sign = rng.choice(NAMES), rng.choice(THINGS), rng.choice("+-")
    low, high = sorted((rng.randint(2, 20), rng.randint(2, 20)))
    if sign == "+":
        return f"{name} has {low} {thing} and buys {high} more. How many {thing} does {name} have now?", low + high
    return f"{name} has {high} {thing} and gives away {low}. How many {thing} does {name} have left?", high - low


def main() -> None:
    rng = random.Random(0)
    known: dict[str, int] = {}
    while len(known) < sum(SIZES.values()):
        question, answer = problem(rng)
        known[question] = answer
    rows = iter(known.items())
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        with (FOLDER / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for _, (question, answer) in zip(range(size), rows, strict=False):
                row = {"prompt": [{"role": "user", "content": question}], "answer": str(answer)}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
