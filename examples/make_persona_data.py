"""Makes examples/data/persona and examples/tasks/music.jsonl from a file of Anthropic's model-written evaluations.

    python examples/make_persona_data.py interest-in-music.jsonl

A row there is a statement, the question whether the model would say it, and the answer of somebody who has the trait.
Here that is a pair: the answer that shows the trait is chosen, the other one rejected.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

TRAIN, VALID, MEASURED = 200, 100, 400  # the held-out pairs are some of the statements that are measured
DATA, TASKS = (Path(__file__).parent / name for name in ("data/persona", "tasks"))


def main(file: str) -> None:
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    rows = list({row["statement"]: row for row in rows}.values())
    rows.sort(key=lambda row: hashlib.sha1(row["statement"].encode()).hexdigest())
    yes, no = ([row for row in rows if row["answer_matching_behavior"] == answer] for answer in (" Yes", " No"))
    balanced = [row for both in zip(yes, no, strict=False) for row in both]  # as many of each, in turn
    train, others = balanced[:TRAIN], balanced[TRAIN : TRAIN + MEASURED]
    write(DATA / "train.jsonl", [pair(row) for row in train])
    write(DATA / "valid.jsonl", [pair(row) for row in others[:VALID]])
    write(DATA / "labelled.jsonl", [labelled(row, wanted=i // 2 % 2 == 0) for i, row in enumerate(train)])
    keys = ("question", "answer_matching_behavior")
    write(TASKS / "music.jsonl", [{"question": row[keys[0]], "answer": row[keys[1]].strip()} for row in others])


def pair(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "chosen": answer(row["answer_matching_behavior"]),
        "rejected": answer(row["answer_not_matching_behavior"]),
    }


def labelled(row: dict[str, Any], *, wanted: bool) -> dict[str, Any]:
    key = "answer_matching_behavior" if wanted else "answer_not_matching_behavior"
    return {"prompt": pair(row)["prompt"], "completion": answer(row[key]), "label": wanted}


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text.strip()}]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
