"""Kernels by kind of work, and the profile of a network at sizes of a test."""

import argparse
import dataclasses
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import slicescan
from benchmarks import network, profile_network, tables
from benchmarks.cases import NETWORK_CPU
from benchmarks.kernels import OTHER, Launch, kind_of, recorded, short, summed

SOURCES = Path(slicescan.__file__).parent / "ops" / "backends" / "cuda"
VECTORIZED = "void at::native::vectorized_elementwise_kernel<4, at::native::"
REDUCED = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::"
ANONYMOUS = "void at::native::(anonymous namespace)::"
TILE = "cutlass_80_tensorop_bf16_s16816gemm_bf16_128x128_64x3_nn_align8"
IMPLICIT = "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_stage4"
COPY = (
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)"
    "::{lambda()#3}::operator()() const::{lambda(float)#1}, std::array<char*, 2ul>>(int)"
)
MUL = (
    "BinaryFunctor<float, float, float, at::native::binary_internal::MulFunctor<float> >, std::array<char*, 3ul> >(int)"
)
KNOWN = (
    ("matrix products", "nvjet_tst_192x208_64x4_2x1_v_bz_coopA_NNT", "nvjet_tst_192x208_64x4_2x1_v_bz_coopA_NNT"),
    ("matrix products", IMPLICIT, IMPLICIT),
    ("matrix products", f"void cutlass::Kernel2<{TILE}>({TILE}::Params)", f"cutlass::Kernel2<{TILE}>"),
    ("matrix products", "void cublasLt::splitKreduce_kernel<32, 16, int>(int)", "cublasLt::splitKreduce_kernel"),
    ("copies and casts", "void cudnn::ops::nchwToNhwcKernel<float, false>(cudnn::ops::params_t)", "nchwToNhwcKernel"),
    ("copies and casts", COPY, "unrolled_elementwise_kernel<direct_copy_kernel_cuda>"),
    ("copies and casts", f"{VECTORIZED}FillFunctor<float>>(int)", "vectorized_elementwise_kernel<FillFunctor>"),
    ("copies and casts", f"{ANONYMOUS}CatArrayBatchedCopy_contig<Opaque>(int)", "CatArrayBatchedCopy_contig"),
    ("copies and casts", "Memcpy DtoD (Device -> Device)", "Memcpy DtoD (Device -> Device)"),
    ("copies and casts", "Memset (Device)", "Memset (Device)"),
    (
        "depth-wise convolutions",
        "void cudnn::cnn::wgrad2d_grouped_direct_kernel<float>(int)",
        "wgrad2d_grouped_direct_kernel",
    ),
    (
        "depth-wise convolutions",
        f"{ANONYMOUS}conv_depthwise2d_forward_kernel<3>(int)",
        "conv_depthwise2d_forward_kernel",
    ),
    ("scans", "void selective_scan_fwd_kernel<Selective_Scan_fwd_kernel_traits<128>>(P)", "selective_scan_fwd_kernel"),
    ("element-wise", f"{VECTORIZED}{MUL}", "vectorized_elementwise_kernel<MulFunctor>"),
    ("element-wise", f"{VECTORIZED}CUDAFunctor_add<float> >(int)", "vectorized_elementwise_kernel<CUDAFunctor_add>"),
    ("reductions", f"{REDUCED}MeanOps<float, float> > >(int)", "reduce_kernel<MeanOps>"),
    ("reductions", f"{REDUCED}NormTwoOps<float, float> > >(int)", "reduce_kernel<NormTwoOps>"),
    ("norms", f"{ANONYMOUS}vectorized_layer_norm_kernel<float, false>(int)", "vectorized_layer_norm_kernel"),
    (
        "resampling and pooling",
        f"{ANONYMOUS}upsample_bilinear2d_nhwc_out_frame<float>(int)",
        "upsample_bilinear2d_nhwc_out_frame",
    ),
    (OTHER, "something_new", "something_new"),
)
MADE_UP = [
    Launch("scan_forward", 6.0),
    Launch("scan_forward", 2.0),
    Launch("nvjet_tst_128", 1.5),
    Launch("gate_forward", 0.49),
    Launch("unheard_of", 0.01),
]
CASE = {
    "eager_ms": 12.5,
    "part": "profile",
    "what": "dim 144",
    "shape": [1, 3, 8, 8],
    "dtype": "bf16",
    "pass": "forward",
}
RESULT = {"device": "a card", "rows": [CASE | summed(MADE_UP), CASE | {"dtype": "fp32"} | summed(MADE_UP[2:3])]}
TINY = dataclasses.replace(
    NETWORK_CPU,
    cases=((False, (1, 3, 8, 12)), (True, (1, 3, 8, 8))),
    models=("xyscannet_tiny",),
    model_cases=((False, (1, 3, 8, 8)),),
    blocks=(1, 1, 1),
)


@pytest.mark.parametrize(("kind", "name", "shortened"), KNOWN, ids=[shortened[:40] for *_, shortened in KNOWN])
def test_kernels_of_libraries_are_known_by_their_names(kind, name, shortened):
    assert (kind_of(name), short(name)) == (kind, shortened)


def test_every_kernel_of_ours_has_a_kind_by_its_file():
    kinds = {"gate": "depth-wise convolutions", "conv": "causal convolutions", "norm": "norms", "silu_gate": "gates"}
    kinds |= {"divergence": "divergences", "twice": "resampling and pooling", "slice_gate": "gates"}
    found = {}
    for file in [*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")]:
        for name in re.findall(r'extern "C" __global__ void[^{]*?(\w+)\(const', file.read_text(encoding="utf-8")):
            found[name] = kind_of(name)
    assert len(found) >= 20
    assert found == {name: kinds.get(name.rpartition("_")[0], "scans") for name in found}
    assert {name.partition("_")[0] for name, kind in found.items() if kind == "scans"} == {"scan"}


def test_kinds_and_kernels_add_up_to_the_whole():
    found = summed(MADE_UP, longest=2)
    assert found["device_ms"] == pytest.approx(10.0) and found["launches"] == 5
    assert found["kinds"]["scans"] == pytest.approx({"ms": 8.0, "share": 0.8, "launches": 2})
    assert list(found["kinds"]) == ["scans", "matrix products", "depth-wise convolutions", "other"]
    assert sum(cost["share"] for cost in found["kinds"].values()) == pytest.approx(1.0)
    assert [(kernel["name"], kernel["launches"]) for kernel in found["longest"]] == [
        ("scan_forward", 2),
        ("nvjet_tst_128", 1),
    ]


def test_the_profiler_sees_one_call_of_several():
    calls = []

    def run():
        calls.append(torch.ones(3, 5) @ torch.ones(5, 3))

    found = recorded(run, "cpu", warm=2)
    assert len(calls) == 3
    assert [launch.name for launch in found].count("aten::matmul") == 1
    assert all(launch.ms >= 0 for launch in found) and sum(launch.ms for launch in found) > 0


def test_a_profiler_that_sees_nothing_is_an_error():
    with pytest.raises(RuntimeError, match="recorded no kernels"):
        recorded(lambda: None, "cpu")


def test_rows_have_figures_and_merge_into_a_file(tmp_path):
    options = argparse.Namespace(device="cpu", dim=[4], dtype=["fp32", "bf16"], beside=["xyscannet_tiny"])
    found = list(profile_network.rows(TINY, options))
    assert [(row["what"], row["pass"]) for row in found[::2]] == [
        ("dim 4", "forward"),
        ("dim 4", "forward+backward"),
        ("xyscannet_tiny", "forward"),
    ]
    assert all(row["device_ms"] > 0 and row["eager_ms"] > 0 and len(row["longest"]) == 12 for row in found)
    assert found[0]["launches"] < found[2]["launches"]  # gradients start more
    for row in (*found, found[0]):
        network.store(tmp_path / "profile.json", {"device": "one"}, [row])
    assert len(json.loads((tmp_path / "profile.json").read_text())["rows"]) == len(found)
    assert "1x3x8x12, fp32, forward: " in profile_network.text(found[0])


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert profile_network.main(["--model", "mambair_unet"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "profile_network.py wants a GPU, and PyTorch finds none here\n" and not printed.out


def test_the_table_has_the_kinds_that_matter_and_the_rest():
    head, _, first, second = tables.profile(RESULT).splitlines()
    assert head.endswith("| launches | matrix products | scans | depth-wise convolutions | the rest |")
    costs = "12.5 ms | 10.0 ms | 5 | 1.5 ms, 15% | 8.0 ms, 80% | 0.5 ms, 5% | 0.0 ms |"
    assert first == f"| dim 144 | 1×3×8×8 | bf16 | forward | {costs}"
    assert second.endswith("| 1.5 ms | 1 | 1.5 ms, 100% | – | – | 0.0 ms |")
    lines = tables.longest(RESULT, 1).splitlines()
    assert lines[2] == "| dim 144 | 1×3×8×8 | bf16 | forward | `scan_forward` | scans | 8.00 ms | 80% | 2 |"
    assert len(lines) == 4


def test_a_note_stands_once_behind_the_rows_that_have_it():
    row = {"what": "dim 8", "shape": [1, 3], "dtype": "bf16", "pass": "forward"}
    rows = [row, row | {"note": "on another day"}, row | {"dtype": "fp32", "note": "on another day"}]
    assert tables.notes(rows) == "- dim 8, 1×3, bf16, forward; dim 8, 1×3, fp32, forward: on another day."
    assert tables.notes([row | {"note": "long ago"}] * 4) == "- dim 8: long ago."
    assert tables.notes([row]) == ""


def test_the_page_of_benchmarks_lays_a_profile_out(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "_ext"))
    text = import_module("benchmark_tables").section("profile_h100", RESULT)
    assert text.startswith("## Where the time of the networks goes: `h100`") and "**a card**" in text
    assert tables.profile(RESULT) in text and tables.longest(RESULT) in text
