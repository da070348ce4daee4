"""Train with one process and with two, in float64; run by test_together.py in a process of its own.

Children are forked from a process that has imported everything, and meet as those of ``torchrun`` do: through its store
and its variables. Prints, as JSON, what the process said whose partner was killed.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import accelerate.utils  # noqa: F401  (here once for all children)
import torch
import torch._dynamo  # noqa: F401

from slicescan.engine.config import BlurSection, DataSection, ModelSection, OptimizerSection, Recipe
from slicescan.engine.train import train
from slicescan.engine.training_state import step_of

RECIPE = Recipe(
    ModelSection("xyscannet_tiny", {"dim": 4, "blocks": [1, 1, 1], "state": 2, "fusion_gate": "sample"}),
    DataSection(patch=8, batch=3, short_last=True),
    BlurSection(positions=3, jpeg=0.5, highlights=0.5),
    optimizer=OptimizerSection(rate=2e-3, warmup=2, ema_decay=0.5),
    iterations=4,
    log_every=2,
    validate_every=4,
    save_every=1,
    accumulate=2,
    tensorboard=False,
)
BLURRED = replace(RECIPE, data=DataSection(patch=8, batch=3, words=0.5), accumulate=1, iterations=2)
LONG = replace(RECIPE, iterations=100_000)


def start(count: int, name: str, recipe: Recipe, root: Path, max_seconds: float | None = None) -> list[int]:
    """Start the processes of a run; returns their numbers."""
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=100)
    )
    STORES.append(store)
    children = []
    for index in range(count):
        children.append(os.fork())
        if not children[-1]:
            of_group = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ |= {key: str(value) for key, value in of_group.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
            torch.set_default_dtype(torch.float64)
            os.dup2(os.open(root / f"{name}-{index}.txt", os.O_WRONLY | os.O_CREAT), 2)
            pictures = {"photos": root / "photos"} if "photos" in name else {"pairs": root / "set"}
            held_out = {} if "photos" in name else {"validation": root / "set"}
            code = 1
            try:
                train(recipe, out=root / name, device="cpu", max_seconds=max_seconds, **pictures, **held_out)
                code = 0
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
    return children


STORES: list[torch.distributed.TCPStore] = []


def run(*arguments, **settings) -> None:
    for child in start(*arguments, **settings):
        assert os.waitpid(child, 0)[1] == 0, arguments[1]


def main(root: Path) -> None:
    for count in (1, 2):
        run(count, f"pairs-{count}", RECIPE, root)
        run(count, f"photos-{count}", BLURRED, root)
    run(2, "pairs-stopped", RECIPE, root, max_seconds=0)
    assert step_of(root / "pairs-stopped" / "checkpoint") == 1
    run(2, "pairs-stopped", RECIPE, root)
    left, killed = start(2, "pairs-lost", LONG, root)
    while step_of(root / "pairs-lost" / "checkpoint") is None:
        time.sleep(0.005)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    _, status = os.waitpid(left, 0)
    print(json.dumps([status, (root / "pairs-lost-0.txt").read_text()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
