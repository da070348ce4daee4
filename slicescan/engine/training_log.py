"""What a run tells about itself: a line of JSON for every fact, and the same for TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

OF_VALIDATION = ("gain_db", "psnr_db")


class TrainingLog:
    """``log.jsonl`` of a run, and its TensorBoard events beside it; what came after the checkpoint is dropped.

    Args:
        folder: Of the run.
        step: Step of the checkpoint that the run goes on from.
        tensorboard: Write events too.
        on: Write at all: of several processes only the first one does.

    Attributes:
        missing: Why there are no events although they were asked for; empty if there are, or nobody asked.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = True, on: bool = True):
        self.file = _continued(folder / "log.jsonl", step) if on else None
        self.events: Any = None
        self.missing = ""
        if on and tensorboard:
            self.events, self.missing = _events(folder / "tensorboard", step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.file:
            self.file.close()
        if self.events:
            self.events.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line, on disk at once; figures become curves."""
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        for key, value in line.items() if self.events else ():
            if isinstance(value, int | float) and key not in ("step", "of"):
                group = "validation" if key in OF_VALIDATION else "train"
                self.events.add_scalar(f"{group}/{key}", value, line["step"])

    def show(self, sheet: Any, step: int) -> None:
        """Add a picture to the events."""
        if self.events:
            self.events.add_image("validation/samples", np.asarray(sheet), step, dataformats="HWC")


def _continued(file: Path, step: int) -> Any:
    """A log to go on with: without what came after the checkpoint, and without a line that was cut short."""
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            fits = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            continue
        kept += [line + "\n"] if fits else []
    fresh = file.with_suffix(".partial")
    fresh.write_text("".join(kept), encoding="utf-8")
    os.replace(fresh, file)
    return open(file, "a", encoding="utf-8")


def _events(folder: Path, step: int) -> tuple[Any, str]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None, "the 'train' extra is missing: pip install 'slicescan[train]', or set tensorboard = false"
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None), ""
