"""What ends a run, said in one line, with what is left of it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from slicescan.engine.data.pictures import DataError
from slicescan.engine.photos import PhotoError
from slicescan.engine.processes import Processes
from slicescan.engine.training_state import step_of

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(out: Path, processes: Processes) -> Iterator[None]:
    """Add to an error from outside, such as a full disk, which checkpoint the same command will go on from.

    Args:
        out: Folder of the run.
        processes: Those that train.

    Raises:
        OSError: The disk is full.
        ValueError: A picture cannot be read, or does not fit its partner; the message names it.
        RuntimeError: Another process is gone.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in FULL or "os error 28" in str(error):
            raise OSError(f"{out}: no space left on the disk; make room. {left(out, processes.first)}") from error
        if processes.lost(error):
            raise _lost(out, processes, error) from error
        raise
    except (DataError, PhotoError) as error:
        raise type(error)(f"{error}. {left(out, processes.first)}") from error
    except RuntimeError as error:
        if processes.lost(error):
            raise _lost(out, processes, error) from error
        raise


def left(out: Path, first: bool = True) -> str:
    """Which checkpoint a run has, as a sentence.

    Args:
        out: Folder of the run.
        first: Whether this is the process that writes it; others may not see the folder.
    """
    step = step_of(out / "checkpoint")
    if step is None and not first:
        return "The same command goes on from the last checkpoint of the first process"
    if step is None:
        return "There is no checkpoint yet; the same command begins again"
    return f"The checkpoint of step {step} is whole; the same command goes on from it"


def _lost(out: Path, processes: Processes, error: BaseException) -> RuntimeError:
    index, count = processes.part
    reason = " ".join(str(error).split())
    return RuntimeError(f"process {index} of {count} lost the others ({reason[:200]}). {left(out, processes.first)}")
