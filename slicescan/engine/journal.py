"""What an evaluation has measured so far, so that a stopped one goes on where it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from slicescan.engine.results import OF_A_SHARD, Row


class Journal:
    """Rows of an evaluation, written one by one; opened again by the same evaluation, it has those that succeeded.

    The file goes when the block ends without an error. Rows of another evaluation, or of another network, are dropped.

    Args:
        folder: Where the results will be.
        about: Facts of the evaluation.

    Attributes:
        rows: By index.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        shard = str(about.get("shard", "")).replace("/", "-of-")
        self.file = folder / f".rows{'-' if shard else ''}{shard}.jsonl"
        kept = {key: value for key, value in about.items() if key not in OF_A_SHARD or key == "unavailable"}
        self.key = json.dumps(kept, sort_keys=True, default=str)
        self.rows: dict[int, Row] = {}

    def __enter__(self) -> Self:
        self.rows = self._read()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_name(f"{self.file.name}.{os.getpid()}.partial")
        fresh.write_text("".join([self.key + "\n", *map(_line, self.rows.values())]), encoding="utf-8")
        os.replace(fresh, self.file)
        self.lines = self.file.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.lines.close()
        if kind is None:
            self.file.unlink()

    def add(self, row: Row) -> None:
        """Keep a row, on disk at once."""
        self.rows[row.index] = row
        self.lines.write(_line(row))
        self.lines.flush()

    def _read(self) -> dict[int, Row]:
        try:
            key, *lines = self.file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return {}
        if key != self.key:
            return {}
        found = {}
        for line in lines:
            try:
                row = Row(*json.loads(line))
            except (ValueError, TypeError):  # the last line of a killed process
                break
            if not row.error:
                found[row.index] = row
        return found


def _line(row: Row) -> str:
    return json.dumps([row.index, row.name, dict(row.figures), row.seconds, row.error]) + "\n"
