"""Parquet files, read with suspicion: what a column claims is checked before it takes memory."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from worldenv.data.formats.hdf5 import TrajectoryFormatError, listed
from worldenv.data.formats.lerobot.extra import need, reading

MOST_ROWS = 10**7
MOST_BYTES = 2**31  # of all numbers of a table, or of the pictures of a row group; LeRobot's tables have 100 MB
MOST_TEXT_BYTES = 2**28  # of the columns of a table about episodes


class Table:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        parquet = need("pyarrow.parquet")
        self.path = path
        if os.path.exists(path) and not os.path.isfile(path):
            raise TrajectoryFormatError(f"{path}: it is not a file")
        try:
            with reading(path):
                self.file = parquet.ParquetFile(path, page_checksum_verification=True)
        except TrajectoryFormatError as error:
            if not os.path.exists(path):
                raise TrajectoryFormatError(f"{path}: there is no such file") from error
            raise
        self.rows = self.file.metadata.num_rows
        if not 1 <= self.rows <= MOST_ROWS:
            raise TrajectoryFormatError(f"{path}: it says that it has {self.rows} rows")

    def numbers(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:  # key -> [rows, size]
        """Columns of numbers, `size` in every row, all finite. Raises TrajectoryFormatError."""
        with reading(self.path):
            for key, size in sizes.items():
                self._check_claim(key, size)
            if (claimed := 8 * self.rows * sum(sizes.values())) > MOST_BYTES:
                raise ValueError(f"its {self.rows} rows claim {claimed} bytes of numbers; {MOST_BYTES} are the most")
            table = self.file.read(columns=list(sizes), use_threads=False)
            return {key: _values(table.column(key), key, size) for key, size in sizes.items()}

    def objects(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """Some columns of a small table, as Python objects: a dictionary for every row."""
        keys = list(keys)
        with reading(self.path):
            for key in keys:
                self._check_there(key)
            if (claimed := sum(column.total_uncompressed_size for column in self._chunks(keys))) > MOST_TEXT_BYTES:
                raise ValueError(f"its columns claim {claimed} bytes")
            return self.file.read(columns=keys, use_threads=False).to_pylist()

    def pictures(self, key: str, begin: int, end: int) -> list[Any]:
        """The files in rows `begin` to `end` of a column of pictures, as bytes."""
        with reading(self.path, key):
            self._check_there(key)
            cells, first = [], 0
            for number in range(self.file.metadata.num_row_groups):
                last = first + self.file.metadata.row_group(number).num_rows
                if first < end and begin < last:
                    if (claimed := sum(c.total_uncompressed_size for c in self._chunks([key], number))) > MOST_BYTES:
                        raise ValueError(f"claims {claimed} bytes of pictures; {MOST_BYTES} are the most")
                    column = self.file.read_row_group(number, columns=[key], use_threads=False).column(key)
                    some = column.slice(max(begin - first, 0), min(end, last) - max(begin, first))
                    cells += some.to_pylist()
                first = last
            found = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
            if any(not isinstance(cell, bytes) for cell in found):
                raise ValueError("has pictures that are not in the table: only what lies in it is read")
            return found

    @property
    def columns(self) -> list[str]:
        return self.file.schema_arrow.names

    def _check_there(self, key: str) -> None:
        if key not in self.columns:
            raise ValueError(f"the column {key} is missing (found {listed(self.columns)})")

    def _check_claim(self, key: str, size: int) -> None:
        self._check_there(key)
        values = sum(column.num_values for column in self._chunks([key]))
        if values != self.rows * size:
            raise ValueError(f"the column {key} has {values} values in {self.rows} rows; it should have {size} in each")

    def _chunks(self, keys: list[str], group: int | None = None) -> Iterable[Any]:
        """What the file says of the columns, in one row group or in all."""
        metadata = self.file.metadata
        for number in range(metadata.num_row_groups) if group is None else (group,):
            found = metadata.row_group(number)
            for column in map(found.column, range(found.num_columns)):
                if any(column.path_in_schema == key or column.path_in_schema.startswith(f"{key}.") for key in keys):
                    yield column


def _values(column: Any, key: str, size: int) -> np.ndarray:  # [rows, size]
    arrow, compute = need("pyarrow"), need("pyarrow.compute")
    types, rows = arrow.types, len(column)
    is_list = types.is_list(column.type) or types.is_fixed_size_list(column.type) or types.is_large_list(column.type)
    if column.null_count:
        raise ValueError(f"the column {key} has empty entries")
    if is_list:
        if (lengths := compute.unique(compute.list_value_length(column)).to_pylist()) != [size]:
            raise ValueError(f"the column {key} has rows of {listed(map(str, lengths))} values; it should be {size}")
        column = compute.list_flatten(column)
    kind = column.type
    if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
        raise ValueError(f"the column {key} holds {kind}; it should hold numbers")
    if column.null_count or len(column) != rows * size:
        raise ValueError(f"the column {key} has empty entries")
    found = column.to_numpy().reshape(rows, size)
    if found.dtype.kind == "f" and not (finite := np.isfinite(found).all(1)).all():
        raise ValueError(f"the column {key} has values that are not finite (first at row {int(np.argmin(finite))})")
    return found
