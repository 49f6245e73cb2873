"""Makes examples/data/sql/{train,valid}.jsonl from the WikiSQL sample of mlx-examples; see examples/data/README.md.

Usage: python examples/make_sql_data.py FOLDER, where FOLDER holds train.jsonl and valid.jsonl of
https://github.com/ml-explore/mlx-examples/tree/7ddca42f/lora/data
"""

import json
import sys
from pathlib import Path

MAX_CHARACTERS = 300


def read(path: Path) -> list[str]:
    """The texts of the source file, each "table: ...\\ncolumns: ...\\nQ: ...\\nA: <SQL>", repeated ones once."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(json.loads(line)["text"] for line in lines))


def columns(text: str) -> str:
    """The line that names the columns of the table."""
    return text.split("\n")[1]


def write(path: Path, texts: list[str]) -> None:
    """One conversation for each text: table, columns and question are asked, the SQL is the answer, both verbatim."""
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            question, _, sql = text.partition("\nA: ")
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": sql}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    print(f"{path}: {len(texts)} rows")


def main() -> None:
    """Writes both files. Training leaves out long rows (time) and tables with the columns of a held-out table."""
    source, target = Path(sys.argv[1]), Path(__file__).parent / "data" / "sql"
    held_out = read(source / "valid.jsonl")
    kept_out = {columns(text) for text in held_out}
    train = [text for text in read(source / "train.jsonl") if len(text) <= MAX_CHARACTERS]
    target.mkdir(parents=True, exist_ok=True)
    write(target / "train.jsonl", [text for text in train if columns(text) not in kept_out])
    write(target / "valid.jsonl", held_out)


if __name__ == "__main__":
    main()
