"""What compilation for a GPU sees of a network, found without a GPU: tensors of no memory, and no kernel is started."""

from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensorMode

from slicescan.models.xyscannet import XYScanNet
from slicescan.ops import dispatch
from slicescan.ops.backends import cuda

KERNELS = ("has_fast_gate", "has_fast_norm", "has_fast_convolution", "has_map_kernels")
SCANNERS, FFNS = 12, 12  # of six blocks, of which three scan
OPERATORS = {
    "slice_scan": SCANNERS, "cuda_conv": SCANNERS, "cuda_gate": SCANNERS // 2 + FFNS,
    "cuda_norm": SCANNERS // 2 + FFNS, "cuda_twice": 2, "cuda_divergence": 2,
}  # fmt: skip
IMAGES = {"cuda_gate": 1, "cuda_norm": 2, "cuda_twice": 1, "cuda_divergence": 3}
"""How many of an operator's first arguments are images, or None."""
CASES = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "bfloat16 of any size": (torch.bfloat16, True),
}


def always(*_):
    return True


always._dynamo_marked_constant = True


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A traced network: the dtype of its maps, and the nodes of its graph that call a function."""
    dtype, dynamic = CASES[request.param]
    nodes = []

    def noted(graph, _):
        nodes.extend(node for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    def backend(graph, inputs):
        return aot_module_simplified(graph, inputs, fw_compiler=noted)

    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.setattr(dispatch, name, always)
        patch.setattr(cuda, "why_not", lambda call: None)
        # what a GPU answers
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", always)
        patch.setattr(torch._C, "_select_conv_backend", lambda *_, **__: torch._C._ConvBackend.Cudnn)
        torch._dynamo.reset()
        network = XYScanNet(24, blocks=(1, 1, 1)).eval()
        compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend=backend)
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            network.to("cuda")
            x = torch.empty(2, 3, 24, 32, device="cuda")
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = compiled(x)
            assert y.shape == x.shape and y.is_cuda
    torch._dynamo.reset()
    return dtype, nodes


def operators(nodes):
    for node in nodes:
        space, _, name = str(node.target).removesuffix(".default").partition(".")
        if space == "slicescan":
            yield name, node


def given(node, count):
    return [x.meta["val"] for x in node.args[:count] if x is not None]


def fills_memory_by_pixels(x):
    _, c, h, w = x.shape
    return x.stride() == (c * h * w, 1, c * w, c)


def test_a_whole_network_is_one_graph_of_own_kernels_and_plain_operations(case):
    assert Counter(name for name, _ in operators(case[1])) == OPERATORS


def test_a_1x1_convolution_is_a_matrix_product_in_half_precision_and_a_convolution_in_float32(case):
    dtype, nodes = case
    seen = Counter(str(node.target) for node in nodes)
    three_by_three = 6
    pointwise = 2 * FFNS + 4 * SCANNERS // 2 + 2 * 4 + 2
    assert seen["aten.convolution.default"] == three_by_three + (pointwise if dtype == torch.float32 else 0)


def test_operators_are_given_maps_with_the_channels_of_a_pixel_side_by_side(case):
    dtype, nodes = case
    for name, node in operators(nodes):
        for x in given(node, IMAGES.get(name, 0)):
            assert fills_memory_by_pixels(x) and x.dtype == dtype, (name, x.shape, x.stride(), x.dtype)
        if name in ("cuda_conv", "slice_scan"):
            x = given(node, 1)[0]
            assert x.stride(3) == 1 and x.stride(1) == x.shape[2] * x.stride(2), (name, x.shape, x.stride())


def test_operators_make_maps_with_the_channels_of_a_pixel_side_by_side(case):
    for name, node in operators(case[1]):
        made = node.meta["val"]
        for x in made if isinstance(made, tuple | list) else [made]:
            if x.ndim == 4 and name in IMAGES:
                assert fills_memory_by_pixels(x), (name, x.shape, x.stride())


def test_only_the_ends_and_resizing_change_the_order_of_a_map(case):
    dtype, nodes = case
    for node in nodes:
        after = node.meta["val"]
        if str(node.target) not in ("aten.clone.default", "aten._to_copy.default") or after.ndim != 4:
            continue
        before = node.args[0].meta["val"]
        weight, end = after.shape[2:] in ((1, 1), (3, 3)), after.shape[1] == 3
        half = dtype == torch.float32 and before.stride(1) == after.stride(1) == 1  # made dense for a convolution
        if not (weight or end or half or before.stride() == after.stride()):
            assert "interpolate" in node.meta["stack_trace"], (node, before.stride(), after.stride())
