"""How much faster several GPUs train than one, with the same batch on each: steps a second from the trainer's own log.

    python benchmarks/two_gpus.py --photos FOLDER --json benchmarks/results/two_gpus.json

Each case is a run of ``slicescan train``, first as one process, then as several under ``torchrun``: ``xyscannet_tiny``
on 16 patches of 128x128 a GPU, as its recipe has it, and ``xyscannet`` on 8 of 256x256. Throughput is patches a second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from benchmarks.measure import machine
from slicescan.checkpoint.write import replacing

ROOT = Path(__file__).resolve().parent.parent
REPORTS = 10
"""Lines of the log in a run; the first two hold what is compiled and tuned at first use."""


@dataclass(frozen=True)
class Case:
    """A network and what every GPU gets in a step.

    Attributes:
        iterations: Steps of a run, a multiple of :data:`REPORTS`.
    """

    model: str
    patch: int
    batch: int
    iterations: int


CASES = {
    "tiny": Case("xyscannet_tiny", 128, 16, 400),
    "large": Case("xyscannet", 256, 8, 100),
    "try": Case("xyscannet_tiny", 16, 1, 10),  # small enough for a CPU
}


def recipe(case: Case, processes: int, device: str) -> str:
    """The TOML of a run."""
    fast = 'amp = "bf16"\ncuda_graph = true' if device == "cuda" else ""
    return f"""iterations = {case.iterations}
log_every = {case.iterations // REPORTS}
save_every = {case.iterations}
tensorboard = false
{fast}
[model]
name = "{case.model}"
[data]
patch = {case.patch}
batch = {case.batch * processes}
"""


def seconds_a_step(case: Case, processes: int, photos: Path, device: str) -> tuple[float, float]:
    """Median seconds of a step, from the log, and of the whole command.

    Raises:
        RuntimeError: The run failed; the message has its last lines.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(recipe(case, processes, device), encoding="utf-8")
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(several if processes > 1 else []), "-m", "slicescan", "train"]
        command += [str(folder / "recipe.toml"), "--photos", str(photos), "--out", str(folder / "run")]
        command += ["--device", device] if device == "cpu" or processes == 1 else []
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        start = time.monotonic()
        ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
        whole = time.monotonic() - start
        if ran.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{ran.stdout[-1000:]}\n{ran.stderr[-3000:]}")
        log = (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    times = [line["seconds_per_step"] for line in map(json.loads, log) if "seconds_per_step" in line]
    return statistics.median(times[2:]), whole


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="sharp photographs to blur")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["tiny", "large"])
    parser.add_argument("--processes", type=int, default=2, help="GPUs beside one")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)

    result: dict[str, Any] = {**machine(options.device), "processes": options.processes, "rows": []}
    for name in options.cases:
        case = CASES[name]
        alone, first = seconds_a_step(case, 1, options.photos, options.device)
        together, second = seconds_a_step(case, options.processes, options.photos, options.device)
        row = {"model": case.model, "patch": case.patch, "batch_a_process": case.batch, "steps": case.iterations}
        row |= {"step_ms_alone": alone * 1e3, "step_ms_together": together * 1e3}
        row |= {"patches_a_second_alone": case.batch / alone}
        row |= {"patches_a_second_together": case.batch * options.processes / together}
        row |= {"faster": options.processes * alone / together, "command_s": [first, second]}
        result["rows"].append(row)
        print(json.dumps(row), flush=True)
        if options.json:
            with replacing(options.json) as fresh:
                fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
