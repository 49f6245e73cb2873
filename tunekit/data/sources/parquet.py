"""Parquet, a row group at a time; the only module that knows pyarrow."""

from collections.abc import Generator
from pathlib import Path

from tunekit.data.sources.contents import empty
from tunekit.data.sources.source import Item, without_nulls
from tunekit.errors import DataError

BATCH = 1000


def read_parquet(file: Path, skip: int) -> Generator[Item, None, int]:
    """The rows after the first `skip`; returns how many are left to skip in the next file."""
    import pyarrow as pa  # half a second that a run on JSON files need not wait
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            if not table.metadata.num_rows:
                raise empty(file)
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{file}: a column name stands twice: {', '.join(names)}")
            number = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if skip >= number + rows:
                    number += rows
                    continue
                for batch in table.iter_batches(BATCH, row_groups=[group]):
                    unread = batch.slice(max(0, skip - number))
                    number += len(batch) - len(unread)
                    for row in unread.to_pylist():
                        yield without_nulls(row), f"{file}[{number}]"
                        number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as parquet: {error}") from error
    return max(0, skip - number)
