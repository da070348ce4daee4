"""The Triton backend, as far as a machine without a GPU can test it; each part in a process of its own.

Whether Triton interprets or compiles is settled when kernels are loaded, and must not differ for other tests.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from slicescan.ops.backends import triton as backend
from slicescan.ops.call import ScanCall

installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    return done.stdout


@installed
def test_the_interpreted_kernels_keep_the_contract():
    path = os.path.join(os.path.dirname(__file__), "triton_interpreted.py")
    run("-m", "pytest", "-p", "no:cacheprovider", "--benchmark-disable", path, TRITON_INTERPRET="1")


@installed
def test_the_kernels_compile_for_devices_of_two_makers(tmp_path):
    found = json.loads(run("-m", "tests.ops.triton_targets", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)))
    assert set(found) == {"sm_80", "sm_90", "gfx942"}
    scans = {"segment_ends", "chain_segments", "scan_forward", "scan_backward"}
    for target, kernels in found.items():
        assert set(kernels) == (scans | {"product"} if target.startswith("sm") else scans)
        assert all(machine_code for _, machine_code in kernels.values())
        # a lane keeps all states of its channel: sums over states meet no other lane, so nothing is exchanged
        assert kernels["scan_forward"][0] == 0


def call_on_the_cpu() -> ScanCall:
    u, mix = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 1, 2)
    return ScanCall(u, u, torch.zeros(4, 2), mix, mix)


@installed
def test_tensors_of_the_cpu_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend.why_not(call_on_the_cpu()) == (
        "needs a GPU that Triton serves, got cpu tensors; use backend='cpu' or 'torch'"
    )


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setattr(backend, "_installed", lambda: False)
    assert "pip install triton" in backend.why_not(call_on_the_cpu())
