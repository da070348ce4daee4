"""Everything that wants a GPU, in one command: checks and tables in order of worth, each with a limit of time.

``python benchmarks/gpu.py --out FOLDER [--minutes 9] [--pieces check scan_bf16 ...] [--device cuda] [--dry-run]``

Each piece is a process of its own, which fails or is stopped alone. What it prints goes into ``FOLDER/NAME.txt`` as it
comes, its figures into ``FOLDER/NAME.json``, and how it ended into ``FOLDER/pieces.json`` at once, so that nothing is
lost if the machine goes. A piece for which no time is left is skipped. A table of all ends the output, also after an
interruption. ``--device cpu`` runs small sizes of those that can, to try the command itself.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHORTEST = 5.0  # seconds in which a piece may still do something


@dataclass(frozen=True)
class Piece:
    """A script of this folder with its words; ``{json}`` stands for its file of figures.

    Attributes:
        limit: Seconds it may take.
        lines: How many of the last lines that it prints belong in the table.
    """

    name: str
    command: str
    limit: float
    lines: int = 1

    def words(self, out: Path) -> list[str]:
        """The command line."""
        script, *rest = shlex.split(self.command)
        return [sys.executable, str(HERE / script), *(str(self.json(out)) if w == "{json}" else w for w in rest)]

    def json(self, out: Path) -> Path:
        """Its file of figures."""
        return out / f"{self.name}.json"

    def log(self, out: Path) -> Path:
        """The file of what it prints."""
        return out / f"{self.name}.txt"


GPU = (
    Piece("check", "check_cuda.py check equal", 150, 2),
    Piece("scan_bf16", "scan.py --dtype bf16 --part table long --without torch triton --json {json}", 150),
    Piece("network", "network.py --dtype bf16 --part network --dim 144 --way eager graph --json {json}", 150),
    Piece("scan_fp32", "scan.py --dtype fp32 --part table long --without torch triton --json {json}", 120),
    Piece("linear", "scan.py --dtype bf16 --part linear --without triton --json {json}", 60),
    Piece("more", "check_cuda.py huge host conv long", 90, 20),
    Piece("triton", "check_triton.py check times", 150, 12),
    Piece("scan_all", "scan.py --dtype bf16 --part table --json {json}", 180),
    Piece("stream", "check_stream.py --dim 144 --size 2160x3840 --dtype bf16 --device cuda", 90, 3),
    Piece("compiled", "network.py --dtype bf16 --part network --dim 144 --way eager compile --json {json}", 180),
    Piece("widths", "network.py --dtype bf16 --part network --dim 72 24 --way eager graph --json {json}", 120),
    Piece("blocks", "network.py --dtype bf16 --part block ss2d --json {json}", 120),
    Piece("profile", "profile_network.py --beside mambair_unet --json {json}", 120, 40),
)
CPU = (
    Piece("scan", "scan.py --device cpu --part table linear --only 64x64 --rounds 1 --json {json}", 120),
    Piece("stream", "check_stream.py --dim 8 --size 48x32 --rows 16", 120, 2),
    Piece("network", "network.py --device cpu --part block --dim 8 --rounds 1 --json {json}", 120),
)


def run(piece: Piece, out: Path, seconds: float) -> str:
    """Run a piece for so long at most: how it ended, in a word or two."""
    words = piece.words(out)
    if not Path(words[1]).exists():
        return "not there"
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _path()}
    with piece.log(out).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=HERE.parent, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped at {seconds:.0f} s"
        finally:
            _end(process)
    return "done" if code == 0 else f"failed ({code})"


def _path() -> str:
    """Where the scripts find the package, installed or not."""
    return os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))


def _end(process: subprocess.Popen) -> None:
    """Stop a process and all that it started, if any of them are left."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(3)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue


def run_all(pieces: Sequence[Piece], out: Path, seconds: float) -> list[dict[str, Any]]:
    """Run pieces in order while there is time; what became of each is stored after each."""
    end, found = time.monotonic() + seconds, []
    try:
        for piece in pieces:
            left, start = end - time.monotonic(), time.monotonic()
            print(f"{piece.name}: {shlex.join(piece.words(out)[1:])}", flush=True)
            found.append({"name": piece.name, "ended": "interrupted"})
            ended = run(piece, out, min(piece.limit, left)) if left >= SHORTEST else "no time left"
            found[-1] |= {"ended": ended, "seconds": round(time.monotonic() - start, 1)}
            _store(out / "pieces.json", found)
    except KeyboardInterrupt:
        _store(out / "pieces.json", found)
    return found


def _store(path: Path, found: list[dict[str, Any]]) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def table(pieces: Sequence[Piece], found: list[dict[str, Any]], out: Path) -> str:
    """How all pieces ended, and the figures that matter."""
    ends, lines = {row["name"]: row for row in found}, []
    for piece in pieces:
        row = ends.get(piece.name, {"ended": "not begun"})
        lines.append(f"{piece.name:<10} {row['ended']:<16} {row.get('seconds', 0):6.1f} s")
        try:
            figures = list(_figures(piece.json(out)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no file, or one in another form
            figures = []
        if row["ended"] != "done" or not figures:
            figures += _last_lines(piece.log(out), piece.lines)
        lines += [f"    {line}" for line in figures]
    return "\n".join(lines)


def _last_lines(log: Path, count: int) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [line.strip()[:140] for line in lines if line.strip()][-count:]


def _figures(path: Path) -> Iterator[str]:
    """A line for each case: ours as it is fastest, beside the floor and the peers."""
    result = json.loads(path.read_text(encoding="utf-8"))
    yield result["device"]
    for row in result["rows"]:
        if "axis" in row:
            yield _scan_figures(row)
            continue
        ours = {key: way for key, way in row["ways"].items() if key.startswith("ours") and "ms" in way}
        about = ", ".join(str(row[key]) for key in ("what", "shape", "dtype", "pass") if key in row)
        if ours:
            key = min(ours, key=lambda key: ours[key]["ms"])
            gain = f", {ours[key]['faster']:.2f} x as fast as the conventional" if "faster" in ours[key] else ""
            yield f"{about}: {key} {ours[key]['ms']:.2f} ms{gain}"
    for ratio in result.get("linear", []):
        yield "time an element, large over small: {way} {axis} {forward:.2f}, {both:.2f}".format(**ratio)


def _scan_figures(row: dict[str, Any]) -> str:
    name, way = next((item for item in row["ways"].items() if "both" in item[1]), ("nothing", {}))
    line = f"{row['case']}, {row['dtype']}, {row['axis']}: {name}"
    if way:
        line += f" {way['forward']:.3f}, with gradients {way['both']:.3f} ms"
        if "both_device" in way:
            line += f" (device alone {way['forward_device']:.3f}, {way['both_device']:.3f})"
        if "times_floor_exponentials" in way:
            line += f"; {way['times_floor_exponentials']:.2f} x the floor"
        for base, gain in (way.get("faster_device") or way["faster"]).items():
            line += f"; {gain['forward']:.2f} and {gain['both']:.2f} x as fast as {base}"
    wrong = [f"{key}: {other['fails']}" for key, other in row["ways"].items() if "fails" in other]
    return "; ".join([line, *wrong])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and figures")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--pieces", nargs="+", metavar="NAME", help="only these, in this order")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and their limits only")
    options = parser.parse_args(words)
    options.out = options.out.resolve()
    known = {piece.name: piece for piece in (GPU if options.device == "cuda" else CPU)}
    if unknown := set(options.pieces or ()) - set(known):
        parser.error(f"there is no piece {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    pieces = [known[name] for name in options.pieces or known]
    if options.dry_run:
        for piece in pieces:
            print(f"{piece.name:<10} {piece.limit:4.0f} s  {shlex.join(piece.words(options.out)[1:])}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = run_all(pieces, options.out, options.minutes * 60)
    print(f"\n{table(pieces, found, options.out)}", flush=True)
    return int(any(row["ended"] != "done" for row in found) or len(found) < len(pieces))


if __name__ == "__main__":
    sys.exit(main())
