"""Train once undisturbed, and once killed again and again; run by test_killed.py in a process of its own.

Children are forked before anything is computed, so that a start costs no import. Prints, as JSON, the step of the
checkpoint at every kill, -1 for none.
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

STEPS, KILLS = 8, 5
RECIPE = Recipe(
    ModelSection("xyscannet_tiny", {"dim": 4, "blocks": [1, 1, 1], "state": 2}),
    DataSection(patch=8, batch=2),
    optimizer=OptimizerSection(rate=2e-3, warmup=3),
    iterations=STEPS,
    log_every=1,
    save_every=1,
)


def start(pairs: Path, out: Path) -> int:
    child = os.fork()
    if child:
        return child
    sys.stderr = open(os.devnull, "w")
    train(RECIPE, out=out, pairs=pairs, device="cpu")
    os._exit(0)


def step_of(out: Path) -> int:
    """Step of the last whole checkpoint."""
    for folder in (out / "checkpoint", out / "checkpoint.old"):
        try:
            return json.loads((folder / "state.json").read_text())["step"]
        except (OSError, ValueError):
            continue
    return -1


def kill_at_random(pairs: Path, out: Path, after: int, within: float) -> bool:
    """Kill a run once its checkpoint has passed a step, at a time drawn from the seconds that follow.

    Returns:
        Whether it was still running.
    """
    child = start(pairs, out)
    ended, status = 0, 0
    while not ended and after >= 0 and step_of(out) <= after:
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
    killed = out / "killed"
    kills = []
    for attempt in range(KILLS):  # the first before there is any checkpoint, most likely
        after = max(0, step_of(killed)) if attempt else -1
        if kill_at_random(pairs, killed, after, a_step / 2):
            kills.append(step_of(killed))
    _, status = os.waitpid(start(pairs, killed), 0)
    assert status == 0
    print(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
