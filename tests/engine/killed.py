"""Train once undisturbed, and then killed again and again; run by test_killed.py in a process of its own.

Children are forked before anything is computed, so that a start costs no import. A run that reaches its end before it
has been killed often enough is followed by another. Prints, as JSON, the number of the run and the step of its
checkpoint, -1 for none, at every kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401  (every optimiser imports it: here once for all children)

from slicescan.engine.config import DataSection, ModelSection, OptimizerSection, Recipe
from slicescan.engine.train import train
from slicescan.engine.training_state import step_of

STEPS, KILLS = 24, 20
RECIPE = Recipe(
    ModelSection("nafnet_w32", {"width": 4, "enc_blocks": [1], "middle_blocks": 1, "dec_blocks": [1]}),  # quick
    DataSection(patch=8, batch=2),
    optimizer=OptimizerSection(rate=2e-3, warmup=3),
    iterations=STEPS,
    log_every=1,
    save_every=1,
    tensorboard=False,
)


def start(pairs: Path, out: Path) -> int:
    child = os.fork()
    if child:
        return child
    sys.stderr = open(os.devnull, "w")
    train(RECIPE, out=out, pairs=pairs, device="cpu")
    os._exit(0)


def reached(out: Path) -> int:
    """Step of the last whole checkpoint, -1 for none."""
    step = step_of(out / "checkpoint")
    return -1 if step is None else step


def kill_at_random(pairs: Path, out: Path, after: int, within: float) -> bool:
    """Kill a run once its checkpoint has passed a step, at a time drawn from the seconds that follow.

    Returns:
        Whether it was still running.
    """
    child = start(pairs, out)
    ended, status = 0, 0
    while not ended and after >= 0 and reached(out) <= after:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    if not ended:
        time.sleep(random.uniform(0, within))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def main(pairs: Path, out: Path) -> None:
    random.seed(0)
    begun = time.monotonic()
    _, status = os.waitpid(start(pairs, out / "undisturbed"), 0)
    assert status == 0
    a_step = (time.monotonic() - begun) / (STEPS + 2)
    kills: list[tuple[int, int]] = []
    run = 0
    while len(kills) < KILLS:
        killed = out / f"killed-{run}"
        after = max(0, reached(killed)) if kills else -1  # the first before there is any checkpoint, most likely
        if kill_at_random(pairs, killed, after, a_step / 2):
            kills.append((run, reached(killed)))
        else:
            run += 1
    _, status = os.waitpid(start(pairs, out / f"killed-{run}"), 0)
    assert status == 0
    print(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
