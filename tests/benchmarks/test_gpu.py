"""One command for everything that wants a GPU: what fails, hangs or comes too late costs no other piece its figures."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu, scan
from benchmarks.gpu import Piece

SCAN = {
    "case": "a map",
    "dtype": "bf16",
    "axis": "w",
    "ways": {
        "cuda": {
            "forward": 2.0,
            "both": 3.0,
            "times_floor_exponentials": 1.5,
            "faster": {"a peer": {"forward": 4, "both": 5}},
        },
        "triton": {"fails": "no compiler"},
    },
}
NETWORK = {
    "what": "dim 144",
    "dtype": "bf16",
    "ways": {"ours, eager": {"ms": 7.0, "faster": 2.5}, "ours, graph": {"fails": "no"}},
}
FIGURES = json.dumps({"device": "a device", "rows": [SCAN, NETWORK], "linear": []})
SCRIPTS = {
    "good.py": f"import sys\nopen(sys.argv[1], 'w').write({FIGURES!r})",
    "bad.py": "print('before', flush=True)\nraise SystemExit(3)",
    "slow.py": "import time\nprint('begun', flush=True)\ntime.sleep(600)",
    "words.py": "for i in range(9):\n    print('line', i)",
}


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    return {
        "bad": Piece("bad", "bad.py", 60),
        "slow": Piece("slow", "slow.py", 1),
        "absent": Piece("absent", "absent.py", 60),
        "words": Piece("words", "words.py", 60, 2),
        "good": Piece("good", "good.py {json}", 60),
    }


def test_each_piece_fails_or_hangs_alone(pieces, tmp_path):
    chosen = list(pieces.values())
    found = gpu.run_all(chosen, tmp_path, 300)
    assert [row["ended"] for row in found] == ["failed (3)", "stopped at 1 s", "not there", "done", "done"]
    assert json.loads((tmp_path / "pieces.json").read_text()) == found
    assert (tmp_path / "bad.txt").read_text() == "before\n"
    lines = gpu.table(chosen, found, tmp_path).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(pieces)
    assert "    line 7\n    line 8\ngood" in "\n".join(lines) and "line 6" not in "\n".join(lines)
    assert lines[-3:] == [
        "    a device",
        "    a map, bf16, w: cuda 2.000, with gradients 3.000 ms; 1.50 x the floor; 4.00 and 5.00 x as fast as a peer; "
        "triton: no compiler",
        "    dim 144, bf16: ours, eager 7.00 ms, 2.50 x as fast as the conventional",
    ]


def test_what_no_time_is_left_for_is_skipped(pieces, tmp_path):
    found = gpu.run_all(list(pieces.values()), tmp_path, gpu.SHORTEST / 2)
    assert {row["ended"] for row in found} == {"no time left"}


def test_an_interruption_leaves_the_table(pieces, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "run", interrupted)
    chosen = list(pieces.values())
    found = gpu.run_all(chosen, tmp_path, 300)
    table = gpu.table(chosen, found, tmp_path)
    assert "interrupted" in table and table.count("not begun") == len(chosen) - 1
    assert json.loads((tmp_path / "pieces.json").read_text()) == found


def test_a_file_cut_off_in_its_middle_does_no_harm(pieces, tmp_path):
    (tmp_path / "good.json").write_text('{"device": "a dev')
    assert gpu.table([pieces["good"]], [{"name": "good", "ended": "failed (1)", "seconds": 1.0}], tmp_path)


def test_scripts_find_the_package_from_a_checkout(tmp_path, monkeypatch):
    piece = Piece("package", "package.py", 100)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "slicescan.py").write_text("")
    (tmp_path / "benchmarks" / "package.py").write_text("import slicescan; print(slicescan.__file__)")
    monkeypatch.setattr(gpu, "HERE", tmp_path / "benchmarks")
    assert gpu.run(piece, tmp_path, 100) == "done"
    assert piece.log(tmp_path).read_text().strip() == str(tmp_path / "slicescan.py")


def test_the_scan_understands_its_commands(tmp_path):
    commands = [piece.words(tmp_path) for piece in (*gpu.GPU, *gpu.CPU) if piece.command.startswith("scan.py")]
    assert len(commands) == 5
    for _, _, *words in commands:
        assert scan.options_from(words).json.parent == tmp_path


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, gpu.__file__, "--out", str(out), "--dry-run"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in text.splitlines()] == [piece.name for piece in gpu.GPU]
    assert not out.exists()


def test_an_unknown_piece_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), "--pieces", "chek"])
    assert "there is no piece chek; there are check, " in capsys.readouterr().err
