"""Results as lines of JSON, each on the disk before the next is measured: a run that is cut off keeps what it has."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Results:
    """The file of results of one run, to which several processes may add, one after another."""

    folder: Path
    stage: str = ""
    started: float = field(default_factory=time.time)

    def add(self, name: str, **values: Any) -> None:
        """Write one line, and print it. What JSON does not know is written as text."""
        record = {"at": round(time.time() - self.started, 2), "stage": self.stage, "name": name, **values}
        line = json.dumps(record, default=str)
        with (self.folder / NAME).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line[:1000], flush=True)

    def of(self, stage: str) -> Results:
        """Return the same file, for this stage."""
        return Results(self.folder, stage, self.started)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All records of a run, the oldest first; a line that was cut off is left out."""
    records = []
    for line in (folder / NAME).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
