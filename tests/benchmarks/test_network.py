"""The table of the networks, at sizes of a test."""

import argparse
import dataclasses
import json

import pytest
import torch

from benchmarks import conventional, network
from benchmarks.cases import NETWORK_CPU
from benchmarks.peers import materialised
from slicescan.layers import SS2D

TINY = dataclasses.replace(
    NETWORK_CPU,
    dims=(4,),
    cases=((False, (1, 3, 8, 12)), (True, (2, 3, 8, 8))),
    check=(1, 3, 8, 12),
    block_dims=(8,),
    block=(1, 4, 6),
    stream_dims=(4,),
    stream=((16, 8), (24, 8)),
    models=("xyscannet_tiny",),
    model_cases=((False, (1, 3, 8, 8)),),
    blocks=(1, 1, 1),
)
OPTIONS = argparse.Namespace(device="cpu", dim=None, dtype=["fp32", "bf16"], way=["eager"], rounds=1)


@pytest.mark.parametrize("size", [(8, 12), (8, 8)])
def test_the_conventional_composition_is_the_same_network(size):
    modules, name = network.pair(8, "cpu", (1, 1, 1))
    assert name == "plain scan in PyTorch"
    modules = {key: module.double() for key, module in modules.items()}
    assert network.check(modules, 1, 3, *size, device="cpu") < 1e-4
    x = network.image(1, 3, *size, device="cpu").double()
    assert network.difference(modules["ours"](x) - x, modules["conventional"](x) - x) < 1e-12


@pytest.mark.parametrize(
    ("scanners", "fusion"), [(("inter", "inter"), "klff"), (("ss2d", "ss2d"), "skip"), (("intra", "intra"), "aff")]
)
def test_the_conventional_variants_are_the_same_networks(scanners, fusion):
    modules, _ = network.pair(4, "cpu", (1, 1, 1), scanners, fusion)
    modules = {key: module.double() for key, module in modules.items()}
    x = network.image(1, 3, 8, 12, device="cpu").double()
    assert network.difference(modules["ours"](x) - x, modules["conventional"](x) - x) < 1e-12


def test_four_stacked_sequences_are_the_four_path_scan():
    ours, theirs = SS2D(8, expand=1.5), conventional.StackedSS2D(8, 1.5, materialised)
    theirs.load_state_dict(network.stirred(ours).state_dict())
    x = network.image(1, 8, 3, 5, device="cpu").double()
    assert network.difference(ours.double()(x), theirs.double()(x)) < 1e-12


def test_compositions_that_differ_are_not_timed():
    modules, _ = network.pair(4, "cpu", (1, 1, 1))
    with torch.no_grad():
        modules["conventional"].decoder_level1[0].intra.mamba.D.mul_(1.05)
    with pytest.raises(SystemExit, match="ours and conventional disagree"):
        network.check(modules, 1, 3, 8, 12, device="cpu")


def test_every_part_but_other_models_has_figures_of_all_ways():
    for part in ("network", "block", "stream"):
        for row in network.MEASURES[part](TINY, OPTIONS):
            assert len(row["ways"]) == (4 if part == "stream" else 2)
            assert all(figures["ms"] > 0 and figures["gib"] > 0 for figures in row["ways"].values())


def test_a_way_that_fails_is_in_the_table_with_its_reason():
    class Broken(torch.nn.Module):
        def forward(self, x):
            if torch.compiler.is_compiling():
                raise ValueError("not this way")
            return x * 2

    row = network.compare({"ours": Broken()}, (1, 3, 4, 4), "fp32", False, "cpu", ("eager", "compile"), 1)
    assert row["ways"]["ours, eager"]["ms"] > 0
    assert set(row["ways"]["ours, compile"]) == {"fails"}


def test_rows_of_another_run_stay_only_on_the_same_machine(tmp_path):
    path, about = tmp_path / "table.json", {"device": "one"}
    network.store(path, about, [{"what": "a", "ways": 1}, {"what": "b", "ways": 1}])
    network.store(path, about, [{"what": "b", "ways": 2}])
    assert json.loads(path.read_text())["rows"] == [{"what": "a", "ways": 1}, {"what": "b", "ways": 2}]
    network.store(path, {"device": "another"}, [{"what": "c"}])
    assert json.loads(path.read_text()) == {"device": "another", "rows": [{"what": "c"}]}


def test_what_fits_once_but_not_again_fails_alone(monkeypatch):
    modules, _ = network.pair(4, "cpu", (1, 1, 1))

    def interleaved(runs, device, rounds):
        raise torch.OutOfMemoryError("out of memory\nand more")

    monkeypatch.setattr(network, "interleaved", interleaved)
    row = network.compare(modules, (1, 3, 8, 12), "fp32", False, "cpu")
    assert row["ways"] == dict.fromkeys(
        ["ours, eager", "conventional, eager"], {"fails": "OutOfMemoryError: out of memory"}
    )
