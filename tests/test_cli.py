"""`slicescan restore` as a user meets it: what is written, what is said, and how it stops."""

import gc
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

import slicescan
from slicescan.checkpoint import write_checkpoint
from slicescan.engine.restore import restore
from slicescan.models.xyscannet import XYScanNet
from tests.command_line import Caller, everything, one_error, photo, pixels, small_network, small_weights

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def call(capsys, weights):
    return Caller(capsys, weights)


@pytest.fixture(scope="module")
def model():
    return small_network()


def test_a_photograph_is_restored_beside_its_input(call, model, tmp_path):
    path = photo(tmp_path / "a.png")
    code, out, err = call.restore(path)
    assert (code, err) == (0, "") and f"{path} -> {tmp_path / 'a_restored.png'} (done, " in out
    expected = restore(model, pixels(path))
    found = pixels(tmp_path / "a_restored.png")
    assert np.array_equal(found, expected) and not np.array_equal(found, pixels(path))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "jpg")]
)
def test_grey_palette_and_cmyk_are_restored(call, tmp_path, mode, suffix):
    code, _, err = call.restore(photo(tmp_path / f"a.{suffix}", mode), "-o", tmp_path / f"out.{suffix}")
    assert (code, err) == (0, "")
    with Image.open(tmp_path / f"out.{suffix}") as found:
        assert found.size == (9, 7) and found.mode == ("L" if mode == "L" else "RGB")


def test_alpha_is_kept(call, tmp_path):
    path = photo(tmp_path / "a.png", "RGBA")
    assert call.restore(path)[0] == 0
    found, given = (pixels(tmp_path / name) for name in ("a_restored.png", "a.png"))
    assert found.shape == (7, 9, 4) and np.array_equal(found[..., 3], given[..., 3])
    assert not np.array_equal(found, given)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_the_smallest_and_the_thinnest_are_restored(call, tmp_path, size):
    code, _, err = call.restore(photo(tmp_path / "a.png", size=size))
    assert (code, err) == (0, "") and pixels(tmp_path / "a_restored.png").shape[1::-1] == size


def test_sixteen_bits_are_restored_with_sixteen_bits(call, model, tmp_path):
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 65536, (7, 9, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    assert call.restore(tmp_path / "a.png")[0] == 0
    found = cv2.imread(str(tmp_path / "a_restored.png"), cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint16 and np.array_equal(found[..., ::-1], restore(model, image))


def test_sixteen_bits_without_the_extra_are_an_error(call, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5), np.uint16))
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, _, err = call.restore(tmp_path / "a.png")
    assert code == 1 and one_error(err, tmp_path / "a.png", "pip install 'slicescan[io]'")
    assert everything(tmp_path) == ["a.png"]


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_photograph_is_restored_upright(call, model, tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = photo(tmp_path / "a.png", exif=exif)
    assert call.restore(path)[0] == 0
    with Image.open(path) as file, Image.open(tmp_path / "a_restored.png") as found:
        upright = np.array(ImageOps.exif_transpose(file))
        assert found.getexif().get(ORIENTATION, 1) == 1
        assert np.array_equal(np.array(found), restore(model, upright))


def test_folders_patterns_and_files_come_together(call, tmp_path):
    photo(tmp_path / "in" / "a.png"), photo(tmp_path / "in" / "deep" / "b.jpg"), photo(tmp_path / "c1.png")
    code, out, _ = call.restore(tmp_path / "in", tmp_path / "c?.png", "-o", tmp_path / "out")
    assert code == 0 and len(out.splitlines()) == 3
    assert everything(tmp_path / "out") == ["a.png", "c1.png", "deep/b.jpg"]


def test_the_settings_of_the_library_are_those_of_the_command(call, model, tmp_path):
    path = photo(tmp_path / "a.png", size=(40, 33))
    image = pixels(path)
    cases = {
        ("--ensemble",): restore(model, image, ensemble=True),
        ("--mode", "tile", "--tile", "16", "--overlap", "0"): restore(model, image, "tile", 16, 0),
        ("--tile", "20", "--overlap", "6"): restore(model, image, "auto", 20, 6),
        ("--amp", "bf16"): restore(model, image, amp="bf16"),
        ("--mode", "whole"): restore(model, image),
    }
    for options, expected in cases.items():
        assert call.restore(path, "-o", tmp_path / "out.png", *options)[0] == 0
        assert np.array_equal(pixels(tmp_path / "out.png"), expected), options
    assert len({expected.tobytes() for expected in cases.values()}) == len(cases)


def test_the_network_can_be_named_and_its_weights_given(call, tmp_path, monkeypatch):
    path, weights = photo(tmp_path / "a.png"), tmp_path / "w.pth"
    monkeypatch.setattr(XYScanNet, "variants", {"little": {"dim": 6, "blocks": (1, 1, 1)}})
    write_checkpoint(weights, XYScanNet(6, blocks=(1, 1, 1)), published=True)
    assert call("restore", path, "--device", "cpu", "--model", "little", "--checkpoint", weights)[0] == 0


def test_json_has_a_line_for_each_file_and_a_last_one(call, tmp_path):
    good, bad = photo(tmp_path / "good.png"), tmp_path / "bad.jpg"
    bad.write_text("no picture")
    code, out, err = call.restore(good, bad, "-o", tmp_path / "out", "--json")
    first, second, last = (json.loads(line) for line in out.splitlines())
    assert code == 1 and last == {"done": 1, "failed": 1} and one_error(err, bad)
    for line in (first, second):
        assert list(line) == ["input", "output", "status", "error", "seconds"] and line["seconds"] >= 0
    assert (first["input"], first["output"]) == (str(good), str(tmp_path / "out" / "good.png"))
    assert (first["status"], first["error"]) == ("done", None)
    assert second["status"] == "failed" and second["error"].startswith(f"{bad}: ") and "text" in second["error"]


def test_what_is_there_is_skipped_and_then_no_network_is_built(call, tmp_path, monkeypatch):
    path = photo(tmp_path / "a.png")
    assert call.restore(path)[0] == 0
    before = (tmp_path / "a_restored.png").stat().st_mtime_ns
    code, out, _ = call.restore(path, "--skip-existing", "--json", checkpoint=tmp_path / "absent.pth")
    assert code == 0 and json.loads(out.splitlines()[0])["status"] == "skipped"
    assert json.loads(out.splitlines()[-1]) == {"done": 1, "failed": 0}
    assert (tmp_path / "a_restored.png").stat().st_mtime_ns == before


def test_shards_do_all_files_between_them(call, tmp_path):
    for name in "abc":
        photo(tmp_path / "in" / f"{name}.png")
    for i, names in ((0, ["a.png", "c.png"]), (1, ["b.png"]), (3, [])):
        out = tmp_path / f"out{i}"
        assert call.restore(tmp_path / "in", "-o", out, "--shard", f"{i}/{max(i + 1, 2)}")[0] == 0
        assert everything(out) == names


def test_a_name_that_cannot_be_printed_stops_nothing(call, tmp_path):
    photo(tmp_path / "b.png")
    try:
        os.rename(tmp_path / "b.png", os.fsencode(tmp_path) + b"/a\xff.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    photo(tmp_path / "b.png")
    code, out, err = call.restore(tmp_path, "-o", tmp_path / "out")
    assert (code, err) == (0, "") and len(os.listdir(tmp_path / "out")) == 2 and "\\udcff" in out


def test_an_interrupt_ends_with_130_and_keeps_what_is_done(call, tmp_path, monkeypatch):
    one, two, forward = photo(tmp_path / "a.png"), photo(tmp_path / "b.png"), XYScanNet.forward
    calls = []

    def stop(self, x):
        calls.append(x)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(XYScanNet, "forward", stop)
    code, out, err = call.restore(one, two, "--json")
    assert code == 130 and err == "slicescan: stopped\n"
    assert [json.loads(line).get("status") for line in out.splitlines()] == ["done", None]
    assert json.loads(out.splitlines()[-1]) == {"done": 1, "failed": 0}
    assert everything(tmp_path) == ["a.png", "a_restored.png", "b.png"]


def started(*arguments, **settings):
    command = [sys.executable, "-m", "slicescan", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def test_a_process_restores_fails_and_stops_as_the_function_does(weights, tmp_path):
    good, bad = photo(tmp_path / "a.png"), tmp_path / "bad.png"
    bad.write_text("no picture")
    for name in ("c.png", "d.png"):
        photo(tmp_path / name, size=(700, 700))
    files = [good, bad, tmp_path / "c.png", tmp_path / "d.png"]
    process = started("restore", *files, "--checkpoint", weights, "--device", "cpu", "-o", tmp_path / "out")
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert "(done, " in first and (tmp_path / "out" / "a.png").is_file()
    assert process.returncode == 130 and err.splitlines()[-1] == "slicescan: stopped" and "Traceback" not in err
    assert set(everything(tmp_path / "out")) <= {"a.png", "c.png"}


def test_threads_of_pytorch_sleep_while_they_wait(call, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    call.restore(photo(tmp_path / "a.png"))
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    call.restore(photo(tmp_path / "a.png"))
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_garbage_is_left_alone_while_modules_are_loaded_and_no_longer(call, tmp_path, monkeypatch):
    collecting, run = [], XYScanNet.forward
    monkeypatch.setattr(XYScanNet, "forward", lambda self, x: (collecting.append(gc.isenabled()), run(self, x))[1])
    for name in "ab":
        photo(tmp_path / "in" / f"{name}.png")
    assert call.restore(tmp_path / "in", "-o", tmp_path / "out")[0] == 0 and gc.isenabled()
    assert collecting == [False, True]
    assert call.restore(tmp_path / "none.png")[0] == 1 and gc.isenabled()
    gc.disable()
    try:
        call.restore(tmp_path / "in", "-o", tmp_path / "out")
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_the_version_is_told_without_importing_torch():
    begun = time.monotonic()
    out, err = started("--version").communicate(timeout=60)
    assert (out, err) == (f"slicescan {slicescan.__version__}\n", "") and time.monotonic() - begun < 30
    code = "import sys; from slicescan.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    process = started("models")
    process.stdout.close()
    assert process.wait(timeout=120) == 141 and process.stderr.read() == ""
    process.stderr.close()
