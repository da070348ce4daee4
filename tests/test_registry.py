"""Names, records, and the way from a name or a file to a model."""

import logging

import pytest
import torch
from torch import nn

import slicescan
from slicescan import (
    create_model,
    is_model,
    list_models,
    list_pretrained,
    load,
    model_entry,
    register_model,
    registry,
    unregister_model,
)
from slicescan.checkpoint import CheckpointError, write_checkpoint
from slicescan.models.base import Detected, Reconstruction, Restorer
from slicescan.models.xyscannet import XYScanNet
from tests.models.weights import error, far_from_default

SMALL = {"dim": 8, "blocks": (1, 1, 1)}
NAMES = ["xyscannet", "xyscannet_plus", "xyscannet_small", "xyscannet_small_aff", "xyscannet_small_inter"]
NAMES += ["xyscannet_small_intra", "xyscannet_small_mambair", "xyscannet_small_skip", "xyscannet_tiny"]


@pytest.fixture(autouse=True)
def _no_outside_models(monkeypatch):
    monkeypatch.setattr(registry, "_outside", {})


@pytest.fixture
def no_packaged_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def test_models_are_listed_by_patterns_and_capabilities():
    assert [name for name in list_models() if name.startswith("xyscannet")] == NAMES
    assert list_models("*_small_i*") == ["xyscannet_small_inter", "xyscannet_small_intra"]
    assert list_models(["*_tiny", "*_plus"], exclude_filters="*plus") == ["xyscannet_tiny"]
    assert list_models("nothing*") == []
    assert (
        list_models("xyscannet*", supports="bf16") == list_models("xyscannet*", supports=["bf16", "compile"]) == NAMES
    )
    assert list_models(supports="telepathy") == []
    assert list_models("xyscannet*", task="motion deblurring") == NAMES and list_models(task="cooking") == []
    assert set(list_models(pretrained=True)) == set(list_pretrained()) <= set(list_models())


def test_numbers_in_names_are_sorted_as_numbers():
    class Wide(XYScanNet):
        variants = {f"net_w{width}": {"dim": width} for width in (64, 8, 16)}

    register_model(Wide)
    assert list_models("net_*") == ["net_w8", "net_w16", "net_w64"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("xyscanet", "xyscannet"), ("xyscannet-tiny", "xyscannet_tiny"), ("XYScanNet_small", "_small")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    assert not is_model(name)
    for ask in (create_model, model_entry):
        with pytest.raises(ValueError, match=f"unknown model '{name}'; nearest: .*{nearest}.*list_models"):
            ask(name)


@pytest.mark.parametrize("name", ["a/b", "hf-hub:a/b", "C:\\net.pth"])
def test_a_path_in_place_of_a_name_is_answered_with_load(name):
    with pytest.raises(ValueError, match=r"is not the name of a model; .*slicescan.load\(path\)"):
        create_model(name)


def test_none_leaves_the_default_of_the_name():
    model = create_model("xyscannet_tiny", dim=None, scanners=None, blocks=(1, 1, 1))
    assert model.arguments["dim"] == 24 and model.arguments["scanners"] == ["intra", "inter"]


def test_arguments_replace_those_of_the_name():
    model = create_model("xyscannet_small_intra", dim=8, blocks=(1, 1, 1), fusion="skip")
    assert model.arguments["scanners"] == ["intra", "intra"] and model.arguments["fusion"] == "skip"
    assert (
        model.architecture == "xyscannet"
        and create_model("xyscannet_small_intra").architecture == "xyscannet_small_intra"
    )


def test_records_name_where_published_weights_are_and_their_terms(no_packaged_weights):
    record = model_entry("xyscannet_plus")
    assert [source.file for source in record.weights] == ["best_XYScanNet_stage2.pth"]
    assert record.weights[0].page.startswith("https://") and "non-commercial" in record.license
    assert model_entry("xyscannet").weights == () and model_entry("xyscannet").license is None
    with pytest.raises(AttributeError):
        record.params = 1


def test_published_weights_that_are_not_here_are_explained(no_packaged_weights):
    with pytest.raises(FileNotFoundError) as caught:
        create_model("xyscannet_plus", pretrained=True, **SMALL)
    message = str(caught.value)
    for part in (
        "best_XYScanNet_stage2.pth",
        "https://",
        "non-commercial",
        "checkpoint_path=",
        str(no_packaged_weights),
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match="there are no trained weights for xyscannet_small_aff"):
        create_model("xyscannet_small_aff", pretrained=True, **SMALL)


def test_a_published_file_in_the_cache_folder_is_found(no_packaged_weights):
    weights = far_from_default(XYScanNet(**SMALL), seed=1)
    for folder, given in ((no_packaged_weights / "mine", True), (no_packaged_weights / "hub" / "checkpoints", False)):
        folder.mkdir(parents=True)
        torch.save({f"module.{key}": value for key, value in weights.items()}, folder / "best_XYScanNet_stage2.pth")
        model = create_model("xyscannet_plus", pretrained=True, cache_dir=folder if given else None, **SMALL)
        assert torch.equal(model.output.weight, weights["output.weight"].float())


def test_weights_that_ship_with_the_package_are_found(no_packaged_weights):
    (no_packaged_weights / "weights").mkdir()
    source = XYScanNet(24)
    write_checkpoint(no_packaged_weights / "weights" / "xyscannet_tiny.safetensors", source, dtype=torch.float16)
    assert list_pretrained() == ["xyscannet_tiny"] == list_models(pretrained=True)
    assert model_entry("xyscannet_tiny").weights[0].page is None
    model = create_model("xyscannet_tiny", pretrained=True)
    assert model.output.weight.dtype == torch.float32
    assert torch.equal(model.output.weight, source.output.weight.half().float())


def test_every_shipped_file_loads_into_the_model_of_its_name():
    shipped = sorted(path.stem for path in registry.WEIGHTS.glob("*.safetensors"))
    assert sorted(list_pretrained()) == shipped
    for name in shipped:
        model = create_model(name, pretrained=True)
        assert model.architecture == name == load(registry.WEIGHTS / f"{name}.safetensors").architecture


def test_colour_weights_become_grey_ones_that_do_the_same(no_packaged_weights):
    colour = XYScanNet(**SMALL).double()
    colour.load_state_dict(far_from_default(colour, seed=2))
    config = {"state_dict": colour.state_dict()}
    grey = create_model("xyscannet_tiny", pretrained=True, pretrained_cfg=config, in_chans=1, **SMALL).double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert error(grey(x), colour(x.expand(1, 3, 8, 8)).mean(1, keepdim=True)) < 1e-5


def test_pretrained_cfg_names_a_file_or_holds_weights(tmp_path):
    source = XYScanNet(**SMALL)
    write_checkpoint(tmp_path / "net.pth", source)
    for config in ({"file": tmp_path / "net.pth"}, {"state_dict": source.state_dict()}):
        model = create_model("xyscannet_tiny", pretrained=True, pretrained_cfg=config, **SMALL)
        assert torch.equal(model.output.weight, source.output.weight)
    with pytest.raises(ValueError, match="pretrained_cfg is .*'hf_hub_id'"):
        create_model("xyscannet_tiny", pretrained=True, pretrained_cfg={"hf_hub_id": "x"}, **SMALL)


def test_models_are_created_for_training_and_loaded_for_use(tmp_path):
    model = create_model("xyscannet_tiny", **SMALL)
    write_checkpoint(tmp_path / "net.pth", model)
    assert model.training and not load(tmp_path / "net.pth").training


def test_a_checkpoint_takes_the_place_of_pretrained(tmp_path):
    source = XYScanNet(**SMALL)
    write_checkpoint(tmp_path / "net.pth", source)
    model = create_model("xyscannet_plus", pretrained=True, checkpoint_path=tmp_path / "net.pth", **SMALL)
    assert torch.equal(model.output.weight, source.output.weight)


def test_what_a_published_file_leaves_open_is_named(tmp_path, caplog):
    write_checkpoint(tmp_path / "net.pth", XYScanNet(**SMALL), published=True)
    with caplog.at_level(logging.WARNING, "slicescan"):
        load(tmp_path / "net.pth")
        assert "XYScanNet; the file leaves open scanners, fusion_gate: default taken" in caplog.text
        caplog.clear()
        assert load(tmp_path / "net.pth", fusion_gate="tensor").arguments["fusion_gate"] == "tensor"
        assert "the file leaves open scanners: default taken" in caplog.text
        caplog.clear()
        write_checkpoint(tmp_path / "own.pth", XYScanNet(**SMALL))
        load(tmp_path / "own.pth")
    assert not caplog.records


def test_half_precision_files_are_opened_in_single_precision(tmp_path):
    write_checkpoint(tmp_path / "net.safetensors", XYScanNet(**SMALL), dtype=torch.float16)
    assert {parameter.dtype for parameter in load(tmp_path / "net.safetensors").parameters()} == {torch.float32}


class Other(Restorer):
    """Another family, with weights of its own."""

    variants = {"other_one": {}, "other_two": {"dim": 2}}

    def __init__(self, dim: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(3, 3 * dim, 1)

    def levels(self, x):
        return [x]

    def reconstruct(self, levels, x):
        return Reconstruction([x])

    @classmethod
    def detect(cls, state_dict):
        weight = state_dict.get("conv.weight")
        return None if weight is None else Detected({"dim": weight.shape[0] // 3}, ())


@pytest.mark.parametrize("published", [False, True])
def test_a_checkpoint_of_another_architecture_is_told_apart(tmp_path, published):
    register_model(Other)
    write_checkpoint(tmp_path / "other.pth", Other(), published=published)
    with pytest.raises(CheckpointError, match="other.pth: .*hold.* Other") as caught:
        create_model("xyscannet_tiny", checkpoint_path=tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("published", [False, True])
def test_a_checkpoint_of_another_size_says_which_argument_differs(tmp_path, published):
    write_checkpoint(tmp_path / "net.pth", XYScanNet(**SMALL), published=published)
    with pytest.raises(CheckpointError) as caught:
        create_model("xyscannet_tiny", checkpoint_path=tmp_path / "net.pth")
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "net.pth")) and "\n" not in message
    assert "dim=8 instead of 24, blocks=[1, 1, 1] instead of [3, 3, 6] in xyscannet_tiny" in message


def test_arguments_without_a_trace_in_the_weights_must_agree_unless_chosen(tmp_path):
    write_checkpoint(tmp_path / "net.pth", XYScanNet(**SMALL, scanners=("inter", "inter"), fusion_gate="tensor"))
    chosen = {"checkpoint_path": tmp_path / "net.pth", **SMALL}
    with pytest.raises(
        CheckpointError, match=r"scanners=\['inter', 'inter'\] instead of .*fusion_gate='tensor' instead"
    ):
        create_model("xyscannet_tiny", **chosen)
    with pytest.raises(
        CheckpointError, match=r"net.pth: fusion_gate='tensor' instead of 'sample' in xyscannet_small_inter"
    ):
        create_model("xyscannet_small_inter", **chosen)
    assert create_model("xyscannet_small_inter", fusion_gate="pixel", **chosen).arguments["fusion_gate"] == "pixel"


def test_weights_of_no_known_model_are_said_to_be_so(tmp_path):
    torch.save({"some.weight": torch.ones(1)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"net.pth: these 1 weights \(some.weight.*belong to no known model"):
        load(tmp_path / "net.pth")
    torch.save(
        {"architecture": "xyscannet2", "arguments": {}, "state_dict": {"w": torch.ones(1)}}, tmp_path / "net.pth"
    )
    with pytest.raises(CheckpointError, match="net.pth: unknown model 'xyscannet2'; nearest: xyscannet"):
        load(tmp_path / "net.pth")
    content = {"architecture": "xyscannet", "arguments": {"dims": 8}, "state_dict": {"w": torch.ones(1)}}
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="net.pth: XYScanNet has no argument 'dims'; did you mean 'dim'"):
        load(tmp_path / "net.pth")


def test_a_mistaken_argument_of_load_is_the_callers(tmp_path):
    write_checkpoint(tmp_path / "net.pth", XYScanNet(**SMALL))
    with pytest.raises(TypeError, match="XYScanNet has no argument 'fusion_gat'; did you mean 'fusion_gate'"):
        load(tmp_path / "net.pth", fusion_gat="tensor")
    with pytest.raises(CheckpointError, match="does not fit XYScanNet"):
        load(tmp_path / "net.pth", dim=10)


def test_weights_with_a_hole_are_refused_and_the_hole_is_named(tmp_path):
    state = XYScanNet(**SMALL).state_dict()
    del state["up2_1.body.1.weight"]
    torch.save(state, tmp_path / "net.pth")
    for use in (load, lambda path: create_model("xyscannet_tiny", checkpoint_path=path, **SMALL)):
        with pytest.raises(
            CheckpointError, match=r"net.pth: does not fit XYScanNet: 1 missing \(up2_1.body.1.weight\)"
        ):
            use(tmp_path / "net.pth")


def test_weights_that_lack_what_a_network_is_known_by_are_compared_with_the_nearest(tmp_path):
    state = {key: value for key, value in XYScanNet(**SMALL).state_dict().items() if "inter.mamba" not in key}
    torch.save({**state, "head.weight": torch.ones(1)}, tmp_path / "net.pth")
    with pytest.raises(
        CheckpointError, match=r"nearest: XYScanNet, 27 missing \(.*inter.mamba.*\), 1 unexpected \(head.weight\)$"
    ):
        load(tmp_path / "net.pth")


def test_a_class_from_outside_is_created_listed_and_loaded(tmp_path):
    assert register_model(Other) is Other
    assert list_models("other*") == ["other_one", "other_two"] and model_entry("other_two").arguments == {"dim": 2}
    model = create_model("other_two")
    write_checkpoint(tmp_path / "own.pth", model)
    write_checkpoint(tmp_path / "bare.pth", model, published=True)
    for file in ("own.pth", "bare.pth"):
        assert load(tmp_path / file).arguments == {"dim": 2}
    with pytest.raises(FileNotFoundError, match="no trained weights for other_one"):
        create_model("other_one", pretrained=True)


def test_a_function_from_outside_gets_what_the_caller_gave(tmp_path):
    received = {}

    @register_model
    def mirror(pretrained=False, **kwargs):
        received.update(kwargs, pretrained=pretrained)
        return nn.Conv2d(1, 1, 1)

    create_model("mirror", pretrained=True, width=3, depth=None)
    assert received == {"pretrained": True, "width": 3}
    create_model("mirror", cache_dir="here")
    assert received["cache_dir"] == "here" and model_entry("mirror").family == "mirror"
    torch.save({"weight": torch.full((1, 1, 1, 1), 5.0), "bias": torch.zeros(1)}, tmp_path / "net.pth")
    assert create_model("mirror", checkpoint_path=tmp_path / "net.pth").weight.item() == 5


def test_a_name_is_given_up_and_built_in_ones_stay():
    register_model(Other)
    for name in ("other_one", "xyscannet", "never_heard_of"):
        unregister_model(name)
    assert list_models("other*") == ["other_two"] and is_model("xyscannet")

    @register_model
    def other_one(pretrained=False, **kwargs):
        return nn.Identity()

    assert isinstance(create_model("other_one"), nn.Identity)


def test_registering_the_same_thing_again_changes_nothing_and_another_is_refused():
    for _ in range(2):
        register_model(Other)
    assert list_models("other*") == ["other_one", "other_two"]

    def other_one(pretrained=False, **kwargs):
        return nn.Identity()

    with pytest.raises(ValueError, match="the name 'other_one' is taken by tests.test_registry.Other"):
        register_model(other_one)

    def xyscannet(pretrained=False, **kwargs):
        return nn.Identity()

    with pytest.raises(ValueError, match="the name 'xyscannet' is taken by slicescan.models.xyscannet.XYScanNet"):
        register_model(xyscannet)
    assert register_model(XYScanNet) is XYScanNet and slicescan.is_model("xyscannet")
