import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slicescan.layers import AFF, KLFF
from slicescan.layers.strips import Strips
from slicescan.ops import divergence
from slicescan.ops.library import watched
from tests.fingerprint import fill, picture, summary
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative
from tests.ops import cuda_emulator


def levels(b: int = 2, seed: int = 0) -> list[torch.Tensor]:
    return [noise(b, 4, 8, 12, seed=seed), noise(b, 8, 4, 6, seed=seed + 1), noise(b, 16, 2, 3, seed=seed + 2)]


@pytest.mark.parametrize("gate", ["sample", "tensor", "pixel"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_klff_restates_its_definition_at_every_level(gate, level):
    cur, *others = levels()[level:] + levels()[:level]
    layer = KLFF(cur.shape[1], [n.shape[1] for n in others], gate=gate)
    wrapped = torch.nn.Module()
    wrapped.add_module("klff", layer)
    wrapped.forward = lambda cur, *others: layer(cur, others)
    assert_restates(wrapped, lambda p, *maps: restated.klff(restated.inside(p, "klff"), *maps, gate=gate), cur, *others)


def test_the_first_two_gates_agree_for_a_batch_of_one_and_only_there():
    for b, agree in ((1, True), (2, False)):
        cur, *others = levels(b)
        results = []
        for gate in ("sample", "tensor"):
            results.append(restated.perturb(KLFF(4, (8, 16), gate=gate))(cur, others))
        assert (relative(*results) < 1e-12) == agree


def test_the_gate_of_the_whole_batch_is_the_only_one_that_mixes_images():
    for gate, mixes in (("sample", False), ("tensor", True), ("pixel", False)):
        layer = restated.perturb(KLFF(4, (8, 16), gate=gate))
        (cur, *others), (alien, *aliens) = levels(), levels(seed=9)
        swapped = [torch.cat([b[:1], a[1:]]) for a, b in zip([cur, *others], [alien, *aliens], strict=True)]
        error = relative(layer(swapped[0], swapped[1:])[1], layer(cur, others)[1])
        assert (error > 1e-6) == mixes


def test_equal_maps_diverge_by_nothing():
    layer = restated.perturb(KLFF(4, (4, 4), gate="pixel"))
    with torch.no_grad():
        for conv in (layer.conv_n1, layer.conv_n2):
            conv.weight.copy_(layer.conv.weight)
    x = noise(1, 4, 3, 3)
    projected = layer.conv(x)
    want = layer.fuse_out1(torch.cat([projected, projected], 1))  # 0.5 and 0.5
    assert relative(layer(x, [x, x]), want) < 1e-12


def test_halving_takes_even_pixels_and_doubling_repeats():
    layer = restated.perturb(KLFF(4, (8, 16)))
    cur, finer, coarser = noise(1, 4, 4, 6), noise(1, 8, 8, 12), noise(1, 16, 2, 3)
    want = layer(cur, [finer[:, :, ::2, ::2], coarser.repeat_interleave(2, 2).repeat_interleave(2, 3)])
    assert relative(layer(cur, [finer, coarser]), want) < 1e-12


def test_sizes_need_not_be_multiples_of_each_other():
    out = KLFF(4, (8, 16))(torch.rand(1, 4, 5, 7), [torch.rand(1, 8, 3, 4), torch.rand(1, 16, 1, 9)])
    assert out.shape == (1, 4, 5, 7)


def test_aff_reproduces_the_public_fingerprint():
    layer = AFF((4, 8, 16), 4)
    fill(layer)
    got = summary(layer([picture(4, 6, 10), picture(8, 6, 10), picture(16, 6, 10)]))
    assert got == pytest.approx([0.063020, 0.049732, -0.020502, 0.063369, 0.090180], rel=1e-5, abs=1e-6)


def test_aff_works_at_the_level_that_has_its_width():
    maps = [n.float() for n in levels()]
    for level, dim in enumerate((4, 8, 16)):
        assert AFF((4, 8, 16), dim)(maps).shape == maps[level].shape
    assert AFF((4, 8, 16), 5, level=2)(maps).shape == (2, 5, 2, 3)


def test_aff_takes_levels_in_order_and_resizes_by_nearest():
    layer = AFF((4, 8, 16), 8).double()
    first, second, third = levels()
    maps = [first[:, :, ::2, ::2], second, third.repeat_interleave(2, 2).repeat_interleave(2, 3)]
    inner = torch.relu(layer.conv[0].main[0](torch.cat(maps, 1)))
    assert relative(layer(levels()), layer.conv[1].main[0](inner)) < 1e-12


def test_the_numbers_of_parameters_are_the_published_ones():
    def count(*layers):
        return sum(p.numel() for layer in layers for p in layer.parameters())

    assert count(KLFF(48, (96, 192)), KLFF(96, (48, 192))) == 71_424
    assert count(AFF((48, 96, 192), 48), AFF((48, 96, 192), 96)) == 152_352


def test_keys_are_the_published_ones():
    assert list(KLFF(4, (8, 16)).state_dict()) == [
        "conv.weight",
        "conv_n1.weight",
        "conv_n2.weight",
        "fuse_out1.weight",
    ]
    convolutions = [f"conv.{i}.main.0.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    assert list(AFF((4, 8, 16), 4).state_dict()) == convolutions


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="other_dims has 1"):
        KLFF(4, (8,))
    with pytest.raises(ValueError, match="'sample', 'tensor', 'pixel'; got 'batch'"):
        KLFF(4, (8, 16), gate="batch")


def test_large_features_stay_finite_in_half_precision():
    layer = KLFF(4, (4, 4)).half()
    x = (2e3 * noise(1, 4, 6, 6)).half()
    assert layer(x, [x, -x]).isfinite().all()


@pytest.fixture
def emulated(monkeypatch):
    """The kernels on a processor, for half precision and float32; names of those that ran."""
    return cuda_emulator.recording(monkeypatch, divergence, watches=watched)


@pytest.mark.parametrize("gate", ["sample", "tensor"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_kernels_give_the_same_result_and_gradients(gate, level, emulated):
    cur, *others = levels()[level:] + levels()[:level]
    layer = restated.perturb(KLFF(cur.shape[1], [n.shape[1] for n in others], gate=gate))
    maps = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in (cur, *others)]

    def results(maps):
        y = layer(maps[0], maps[1:])
        return [y, *torch.autograd.grad(y, [*maps, *layer.parameters()], noise(*y.shape, seed=5).to(y.dtype))]

    exact = results(maps)
    assert not emulated
    layer.float()
    narrow = [x.detach().float().requires_grad_() for x in maps]
    for got, want in zip(results(narrow), exact, strict=True):
        assert relative(got, want) < 1e-5
    assert len(emulated) == 6
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert relative(layer(narrow[0], narrow[1:]), exact[0]) < 2e-2


@pytest.mark.parametrize("gate", ["sample", "tensor"])
def test_strips_by_the_kernels_give_the_result_of_the_whole(gate, emulated):
    layer = restated.perturb(KLFF(8, (4, 16), gate=gate)).float()
    finer, cur, coarser = (x.float().contiguous(memory_format=torch.channels_last) for x in levels())
    with torch.no_grad():
        whole = layer(cur, [finer, coarser])
        assert relative(Strips(4).fuse(layer, [finer, cur.clone(), coarser], 1), whole) < 1e-6
    assert {"divergence_sums", "divergence_mix"} == set(emulated)


def test_counters_and_files_see_the_order_of_the_definition_and_others_the_cheaper_one(emulated):
    layer = KLFF(4, (8, 16))
    cur, *others = (x.float() for x in levels(1))
    seen = []
    layer.conv_n1.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape[2:])))
    with FlopCounterMode(display=False) as counter:
        layer(cur, others)
    assert counter.get_total_flops() == 2 * 8 * 12 * (4 * 4 + 8 * 4 + 16 * 4 + 8 * 4)
    assert not emulated
    layer(cur, others)
    torch.export.export(layer, (cur, others))
    assert seen[:2] == [(8, 12), (4, 6)] and seen[-1] == (8, 12)


def test_compiled_whole_it_is_the_plain_network():
    torch.compiler.reset()
    layer = KLFF(4, (8, 16)).double()
    cur, *others = levels(1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert relative(compiled(cur, others), layer(cur, others)) < 1e-12
