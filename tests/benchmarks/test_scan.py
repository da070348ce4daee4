"""The table of the scan, at sizes of a test."""

import json

import pytest
import torch

from benchmarks import scan
from benchmarks.cases import GPU, KNOWN, Case
from benchmarks.peers import MAPS, MATERIALISED, OWN_LAYOUT, WITH_LAYOUT, Peer, image, ours, sequences
from slicescan.ops import slice_scan
from slicescan.ops.backends.cuda import driver, nvrtc

TINY = Case("tiny", 2, 3, 5, 8, n=4)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(scan, "CPU", (TINY,))
    monkeypatch.setattr(scan, "LINEAR_CPU", (TINY, Case("wider", 2, 6, 10, 8, n=4)))
    monkeypatch.setattr(scan, "memory", lambda run, device: 0)


def table(tmp_path, *words) -> tuple[int, dict]:
    path = tmp_path / "new" / "figures.json"
    code = scan.main(["--device", "cpu", "--rounds", "1", "--json", str(path), *words])
    return code, json.loads(path.read_text())


def own(a, axis):
    """A scan of sequences ``(s, d, l)``."""
    case = TINY.arguments()["u"]
    maps = {name: image(x, case, axis) if name in MAPS else x for name, x in a.items()}
    return sequences(slice_scan(**maps, axis=axis, delta_softplus=True, backend="torch"), axis)


def laid_out(a, axis):
    return {name: sequences(x, axis) if name in MAPS else x for name, x in a.items()}


def test_every_way_is_measured_and_set_against_the_peers(tmp_path):
    code, found = table(tmp_path)
    assert code == 0 and found["device"] and found["torch"]
    assert [(row["part"], row["case"], row["axis"]) for row in found["rows"]] == [
        ("table", "tiny", "w"), ("table", "tiny", "h"),
        ("linear", "tiny", "w"), ("linear", "tiny", "h"), ("linear", "wider", "w"), ("linear", "wider", "h"),
    ]  # fmt: skip
    ways = found["rows"][0]["ways"]
    assert list(ways)[-2:] == ["torch", MATERIALISED]
    slow, fast = ways[MATERIALISED], ways["torch"]
    assert fast["faster"] == {MATERIALISED: {p: slow[p] / fast[p] for p in ("forward", "both")}}
    assert slow["faster"] == {} and all(way["difference"] < 1e-4 for way in ways.values())
    wide, small = found["rows"][4], found["rows"][2]
    name = next(iter(wide["ways"]))
    ratio = (wide["ways"][name]["both"] / small["ways"][name]["both"]) / 4
    assert found["linear"][0]["both"] == pytest.approx(ratio)


def test_a_peer_in_its_own_layout_is_compared_there(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "peers", lambda _: {OWN_LAYOUT: Peer(own, laid_out)})
    code, found = table(tmp_path, "--part", "table")
    assert code == 0 and all(0 < row["ways"][OWN_LAYOUT]["difference"] < 1e-4 for row in found["rows"])


def skewed(a, axis):
    a = a | {"B": a["B"].detach() * 0.1 + a["B"] * 0.9}  # the result is right, the gradient of B is not
    return slice_scan(**a, axis=axis, delta_softplus=True, backend="torch")


def broken(a, axis):
    raise RuntimeError("no kernel image\nand more")


def test_what_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    odd = {
        "wrong": Peer(skewed, lambda a, _: dict(a)),
        "broken": Peer(broken, lambda a, _: dict(a)),
        "ours": ours("torch"),
    }
    monkeypatch.setattr(scan, "peers", lambda _: odd)
    code, found = table(tmp_path, "--part", "table", "--without", "torch")
    ways = found["rows"][0]["ways"]
    assert code == 1 and list(ways)[-3:] == list(odd) and "torch" not in ways
    assert ways["wrong"]["fails"] == "the gradient of B is another: relative error 1.0e-01"
    assert ways["broken"]["fails"] == "RuntimeError: no kernel image"
    assert ways["ours"]["both"] > 0 and "no kernel image" in capsys.readouterr().out


def test_what_takes_long_runs_only_once(tmp_path):
    _, found = table(tmp_path, "--part", "table", "--once", "0")
    for row in found["rows"]:
        for way in row["ways"].values():
            assert way["both"] == way["both_once"] and way["both_extra"] is None


def test_a_peer_that_would_not_fit_is_not_begun(monkeypatch):
    monkeypatch.setattr(scan, "GIB", 1)
    monkeypatch.setattr(scan.Path, "read_text", lambda path, encoding: "MemTotal: 9 kB\nMemAvailable: 2 kB\n")
    assert scan._lacking({"u": torch.zeros(100, 3)}) == "needs about 84000 GiB, there are 2048"
    assert scan._lacking({"u": torch.zeros(1, 3)}) is None


def test_floors_and_known_times_are_set_beside_the_figures(capsys):
    def way(forward, both):
        return {"forward": forward, "both": both, "forward_extra": 0.5, "both_extra": None}

    found = {"case": GPU[0].name, "dtype": "bf16", "axis": "w", "floor_exponentials": 0.2, "floor_bytes": 0.1}
    found["known"] = KNOWN[GPU[0].name, "bf16", "w"]
    found["ways"] = {"cuda": way(0.3, 1.0), OWN_LAYOUT: way(0.67, 6.07), WITH_LAYOUT: way(3.28, 9.0)}
    scan.add_ratios(found)
    cuda, own_layout, with_layout = found["ways"].values()
    assert (cuda["times_floor_exponentials"], cuda["times_floor_bytes"]) == pytest.approx((1.5, 3.0))
    assert cuda["faster"][OWN_LAYOUT]["both"] == pytest.approx(6.07) and set(cuda["faster"]) == {
        OWN_LAYOUT,
        WITH_LAYOUT,
    }
    assert own_layout["of_known"] == {"forward": 1, "both": 1} and with_layout["of_known"] == {"forward": 2}
    scan.show(found)
    text = capsys.readouterr().out
    assert "1.50 and 3.00 x the floors" in text and "of known 2.00" in text and "not measured" in text
    assert {case for case, _, _ in KNOWN} == {case.name for case in GPU}


def test_the_kernels_of_all_cases_are_compiled_before_the_first_runs(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(nvrtc, "compile_cached", lambda source, options, capability: compiled.append(capability))
    launch = driver.launch
    scan.compile_ahead((TINY,), ["bf16", "fp32"], "cpu")
    assert len(compiled) >= 2 * 3 and set(compiled) == {90}  # forward, with what is saved, and backward, at least
    assert driver.launch is launch


def test_a_slow_way_is_measured_forwards_alone(tmp_path, capsys):
    _, found = table(tmp_path, "--part", "table", "--gradients", "0")
    for row in found["rows"]:
        for way in row["ways"].values():
            assert way["forward"] > 0 and "both" not in way and way["no_gradients"].startswith("its forward pass takes")
        assert set(row["ways"]["torch"]["faster"][MATERIALISED]) == {"forward"}
    assert "with gradients not measured: its forward pass takes" in capsys.readouterr().out


def test_the_materialised_loop_runs_forwards_where_its_gradients_would_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_lacking", lambda a, times=scan.WITH_GRADIENTS: "no room" if times > 50 else None)
    _, found = table(tmp_path, "--part", "table")
    ways = found["rows"][0]["ways"]
    assert ways[MATERIALISED]["no_gradients"] == "no room" and ways[MATERIALISED]["forward"] > 0
    assert set(ways["torch"]["faster"][MATERIALISED]) == {"forward"} and ways["torch"]["both"] > 0
