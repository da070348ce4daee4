"""What compilation for a GPU sees of a network, found without a GPU: tensors of no memory, and no kernel is started."""

from collections import Counter

import torch
from functorch.compile import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensorMode

from slicescan.models.xyscannet import XYScanNet
from slicescan.ops import dispatch
from slicescan.ops.backends import cuda

KERNELS = ("has_fast_gate", "has_fast_norm", "has_fast_convolution", "has_map_kernels")


def always(*_):
    return True


def test_a_whole_network_is_one_graph_of_own_kernels_and_plain_operations(monkeypatch):
    always._dynamo_marked_constant = True
    for name in KERNELS:
        monkeypatch.setattr(dispatch, name, always)
    monkeypatch.setattr(cuda, "why_not", lambda call: None)
    seen = Counter()

    def noted(graph, _):
        seen.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    network = XYScanNet(24, blocks=(1, 1, 1)).eval()
    compiled = torch.compile(
        network, fullgraph=True, backend=lambda g, x: aot_module_simplified(g, x, fw_compiler=noted)
    )
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        network.to("cuda")
        y = compiled(torch.empty(1, 3, 24, 32, device="cuda"))
    assert y.shape == (1, 3, 24, 32) and y.is_cuda
    scanners = 12  # two to a block, of which there are six
    assert seen["slicescan.slice_scan.default"] == seen["slicescan.cuda_conv.default"] == scanners
    assert seen["slicescan.cuda_gate.default"] == seen["slicescan.cuda_norm.default"] == 3 * scanners // 2
