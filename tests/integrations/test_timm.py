from fnmatch import fnmatchcase

import pytest
import timm
import torch
from timm.models import PretrainedCfg
from timm.optim import create_optimizer_v2

import slicescan
from slicescan.checkpoint import write_checkpoint
from slicescan.integrations import timm as door


@pytest.fixture(scope="module", autouse=True)
def registered():
    assert door.register() == door.register() == [f"slicescan_{name}" for name in slicescan.list_models()]


def test_timm_lists_the_models_and_those_with_weights():
    assert set(timm.list_models("slicescan_*")) == {f"slicescan_{name}" for name in slicescan.list_models()}
    assert timm.list_models("slicescan_*", pretrained=True) == [f"slicescan_{n}" for n in slicescan.list_pretrained()]


def test_timm_builds_the_same_network_with_weights_and_arguments():
    ours = slicescan.create_model("xyscannet_tiny", pretrained=True).state_dict()
    theirs = timm.create_model("slicescan_xyscannet_tiny", pretrained=True).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    small = timm.create_model("slicescan_xyscannet_tiny", blocks=(1, 1, 1), fusion=None, cache_dir=None)
    assert len(small.encoder_level1) == 1 and small.pretrained_cfg["architecture"] == "slicescan_xyscannet_tiny"


def test_an_unknown_keyword_is_not_swallowed():
    with pytest.raises(TypeError, match="bloks"):
        timm.create_model("slicescan_xyscannet_tiny", bloks=(1, 1, 1))


def test_weights_come_from_where_timms_keywords_say(tmp_path):
    ours = slicescan.create_model("xyscannet_tiny", blocks=(1, 1, 1), dim=8)
    write_checkpoint(tmp_path / "own.pth", ours)
    said = {"file": tmp_path / "own.pth"}
    for where in (
        {"pretrained": True, "pretrained_cfg": said},
        {"pretrained": True, "pretrained_cfg": PretrainedCfg(**said)},
        {"pretrained": True, "pretrained_cfg_overlay": said},
        {"pretrained": True, "pretrained_cfg": {"state_dict": ours.state_dict()}},
        {"checkpoint_path": str(tmp_path / "own.pth")},
    ):
        theirs = timm.create_model("slicescan_xyscannet_tiny", blocks=(1, 1, 1), dim=8, **where)
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items()), where
    assert theirs.pretrained_cfg["architecture"] == "slicescan_xyscannet_tiny"


def test_a_tag_that_no_weights_have_is_refused():
    with pytest.raises(ValueError, match="slicescan_xyscannet_tiny has no weights tagged 'gopro'"):
        timm.create_model("slicescan_xyscannet_tiny.gopro", pretrained=True)


def test_intermediate_maps_have_the_sizes_of_the_levels():
    model = timm.create_model("slicescan_xyscannet_tiny", blocks=(1, 1, 1))
    maps = model.forward_intermediates(torch.rand(1, 3, 16, 24))
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (4, 6)]


def test_timms_optimiser_spares_what_must_not_decay_and_scales_rates_by_depth():
    model = timm.create_model("slicescan_xyscannet_tiny", blocks=(2, 1, 1))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    of = {
        id(parameter): (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    for name, (decay, _) in named.items():
        spared = any(fnmatchcase(name, pattern) for pattern in model.no_weight_decay())
        assert (decay == 0) == (spared or model.get_parameter(name).ndim < 2), name
    assert named["decoder_level1.0.intra.mamba.A_log"][0] == 0
    order = ["patch_embed.proj.weight", "encoder_level1.0.ffn1.project_in.weight",
             "encoder_level1.1.ffn1.project_in.weight", "decoder_level3.0.ffn1.project_in.weight",
             "decoder_level1.0.ffn1.project_in.weight", "output.weight"]  # fmt: skip
    scales = [named[name][1] for name in order]
    assert scales == sorted(scales) and len(set(scales)) == len(scales)
