"""Training on pairs, and what recipes add to a step: pieces, schedules, other losses, weights to start from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import slicescan
from slicescan.cli import main
from slicescan.engine.config import DataSection, LossSection, ModelSection, OptimizerSection, Recipe, Stage
from slicescan.engine.losses import total, total_of_scales
from slicescan.engine.quality import measure
from slicescan.engine.run import Run
from slicescan.engine.sources import open_held_out
from slicescan.engine.train import train
from slicescan.engine.training_state import read_state
from tests.engine.data.sets import write
from tests.engine.vgg import random_weights, whole_file

MODEL = ModelSection("xyscannet_tiny", {"dim": 4, "blocks": [1, 1, 1], "state": 2, "fusion_gate": "tensor"})
RECIPE = Recipe(
    MODEL,
    DataSection(patch=8, batch=3, channels="bgr", short_last=True),
    loss=LossSection(edge=0.05),
    optimizer=OptimizerSection(rate=2e-3, warmup=0, clip=0.0, ema_decay=0.0),
    iterations=4,
    log_every=2,
    save_every=100,
    validate_every=2,
    tensorboard=False,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _plain_scan(monkeypatch):
    """Nothing here is about scans, and this backend needs no compiling."""
    monkeypatch.setenv("SLICESCAN_BACKEND", "torch")


@pytest.fixture(scope="module")
def gopro(tmp_path_factory):
    """Five pairs to train on, one to test on, in GoPro's layout."""
    root = tmp_path_factory.mktemp("gopro")
    for index in range(6):
        split = "test" if index == 5 else "train"
        rough = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        sharp = np.array(Image.fromarray(rough).resize((24, 20), Image.Resampling.BICUBIC))
        soft = np.array(Image.fromarray(rough).resize((24, 20), Image.Resampling.BILINEAR))
        write(root, f"{split}/GOPR{index}/blur/1.png", soft), write(root, f"{split}/GOPR{index}/sharp/1.png", sharp)
    return root


def state(recipe, out):
    run = Run(recipe, CPU)
    step = read_state(out / "checkpoint", run.state())
    return step, [tensor.clone() for tensor in run.state()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def batch(count=3, seed=0, side=8):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, side, side, generator=draw) for _ in range(2)]


@pytest.mark.parametrize(
    "data",
    [RECIPE.data, DataSection(patch=8, batch=2, progressive=(Stage(2, 12, 1), Stage(3, 4, 3)))],
    ids=["last batch short", "patches by schedule"],
)
def test_a_run_on_pairs_stopped_after_every_step_ends_with_the_same_bits(data, gopro, tmp_path):
    recipe = replace(RECIPE, data=data)
    train(recipe, out=tmp_path / "whole", pairs=gopro, device="cpu")
    for step in range(1, recipe.iterations + 1):
        train(recipe, out=tmp_path / "stopped", pairs=gopro, device="cpu", max_seconds=0)
        assert state(recipe, tmp_path / "stopped")[0] == step
    assert same(state(recipe, tmp_path / "whole")[1], state(recipe, tmp_path / "stopped")[1])


def test_held_out_pairs_are_measured_as_they_are(gopro, tmp_path):
    train(RECIPE, out=tmp_path, pairs=gopro, validation=gopro, device="cpu")
    assert [line["step"] for line in lines(tmp_path) if "psnr_db" in line] == [2, 4]
    held_out = open_held_out(replace(RECIPE.data, pairs=str(gopro), validation=str(gopro)))
    (one,) = measure(lambda image: image, held_out)
    assert one.name == "test/GOPR5/blur/1.png" and one.gain == 0
    soft, sharp = (np.array(Image.open(gopro / "test/GOPR5" / side / "1.png"), float) for side in ("blur", "sharp"))
    assert one.psnr_in == pytest.approx(10 * np.log10(255**2 / ((soft - sharp) ** 2).mean()))


def test_some_held_out_pairs_may_be_enough(gopro):
    data = replace(RECIPE.data, pairs=str(gopro), validation=str(gopro / "train"))
    for measured, count in ((0, 5), (2, 2), (3, 3), (9, 5)):
        assert len(open_held_out(replace(data, measured=measured))) == count


def test_frames_and_two_folders_are_pairs_too(tmp_path):
    for number in range(7):
        write(tmp_path, f"video/{number}.png", np.full((20, 20, 3), 30 * number, np.uint8))
    short = replace(RECIPE, iterations=1)
    train(
        replace(short, data=replace(RECIPE.data, frames=3)), out=tmp_path / "a", pairs=tmp_path / "video", device="cpu"
    )
    data = replace(RECIPE.data, pairs=str(tmp_path / "video"), sharp=str(tmp_path / "video"))
    train(replace(short, data=data), out=tmp_path / "b", device="cpu")
    assert all(lines(tmp_path / name)[-1]["step"] == 1 for name in "ab")


def test_a_mismatch_ends_the_run_before_it_begins(gopro, tmp_path):
    write(tmp_path, "blur/1.png")
    write(tmp_path, "sharp/2.png")
    with pytest.raises(ValueError, match=r"1\.png: no sharp partner \(2 such; `slicescan data check` tells more\)"):
        train(RECIPE, out=tmp_path / "out", pairs=tmp_path, device="cpu")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="pass one of them"):
        train(RECIPE, out=tmp_path / "out", pairs=gopro, photos=gopro, device="cpu")


def test_the_command_trains_on_pairs_from_given_weights(gopro, tmp_path):
    text = "\n".join(
        [
            "iterations = 1",
            "tensorboard = false",
            "[model]",
            'name = "xyscannet_tiny"',
            "arguments = { dim = 4, blocks = [1, 1, 1], state = 2 }",
            "[data]",
            "patch = 8",
            "batch = 1",
            "[optimizer]",
            "rate = 0.0",
            "final_rate = 0.0",
            "ema_decay = 0.0",
        ]
    )
    (tmp_path / "run.toml").write_text(text)
    start = slicescan.create_model("xyscannet_tiny", dim=4, blocks=(1, 1, 1), state=2)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    command = ["train", str(tmp_path / "run.toml"), "--out", str(tmp_path / "out"), "--pairs", str(gopro)]
    assert main([*command, "--device", "cpu", "--weights", str(tmp_path / "start.safetensors")]) == 0
    found = slicescan.load(tmp_path / "out" / "xyscannet_tiny.safetensors")
    assert same(list(found.parameters()), list(start.parameters()))


def test_a_run_that_has_begun_no_longer_needs_the_weights_it_started_from(gopro, tmp_path):
    start = slicescan.create_model("xyscannet_tiny", **MODEL.arguments)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    recipe = replace(RECIPE, model=replace(MODEL, weights=str(tmp_path / "start.safetensors")))
    train(recipe, out=tmp_path / "whole", pairs=gopro, device="cpu")
    train(recipe, out=tmp_path / "out", pairs=gopro, device="cpu", max_seconds=0)
    (tmp_path / "start.safetensors").unlink()
    train(recipe, out=tmp_path / "out", pairs=gopro, device="cpu")
    assert same(state(RECIPE, tmp_path / "out")[1], state(RECIPE, tmp_path / "whole")[1])
    with pytest.raises(FileNotFoundError, match=r"start\.safetensors: the run starts from .* or --weights"):
        train(recipe, out=tmp_path / "other", pairs=gopro, device="cpu")


def test_pretrained_weights_are_those_of_the_package():
    run = Run(Recipe(ModelSection("xyscannet_tiny", weights="pretrained")), CPU)
    assert same(run.parameters, list(slicescan.create_model("xyscannet_tiny", pretrained=True).parameters()))


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(pieces):
    """A gate for each image, so that pieces do not matter to the network."""
    recipe = replace(RECIPE, model=replace(MODEL, arguments={**MODEL.arguments, "fusion_gate": "sample"}))
    recipe = replace(recipe, data=replace(recipe.data, batch=5))
    whole, cut = Run(recipe, CPU), Run(replace(recipe, accumulate=pieces), CPU)
    for run in (whole, cut):
        for tensor in run.model.parameters():
            tensor.data = tensor.data.double()
    loss, gradients = whole._gradients(*(image.double() for image in batch(5)))
    other, pieced = cut._gradients(*(image.double() for image in batch(5)))
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(pieced, gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 4}, "accumulate: expected 1 to data.batch = 3, got 4"),
        ({"accumulate": 0}, "accumulate: expected 1 to"),
        ({"cuda_graph": True}, "cuda_graph needs batches of one size"),
    ],
)
def test_settings_that_do_not_go_together_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


@pytest.mark.parametrize("change", [{"photos": "a", "pairs": "b"}, {"sharp": "a", "frames": 3}])
def test_pictures_come_from_one_place(change):
    with pytest.raises(ValueError, match=" (and|are) .*(one of them|the middle one is sharp)"):
        DataSection(**change)


def test_rates_may_be_held_for_an_epoch():
    run = Run(
        replace(RECIPE, optimizer=OptimizerSection(rate=1.0, final_rate=0.0, warmup=0, hold=5), iterations=20), CPU
    )
    cosine = [(1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4) for _ in range(5)]
    assert [run.rate_at(step) for step in range(20)] == pytest.approx(cosine)


def test_without_average_the_weights_themselves_are_kept():
    run = Run(RECIPE, CPU)
    run.update(*batch())
    assert same(run.average, run.parameters)


def test_adam_without_decay_makes_the_steps_of_pytorchs_adam():
    """The paper's optimiser: Adam, library defaults."""
    recipe = replace(RECIPE, optimizer=replace(RECIPE.optimizer, betas=(0.9, 0.999)))
    run, other = Run(recipe, CPU), Run(recipe, CPU)
    adam = torch.optim.Adam(other.model.parameters(), lr=1.0)
    for step in range(3):
        pair = batch(seed=step)
        run.update(*pair)
        adam.param_groups[0]["lr"] = other.rate_at(step)
        loss = total(other.model(pair[0].contiguous(memory_format=torch.channels_last)), pair[1], recipe.loss)
        adam.zero_grad(), loss.backward(), adam.step()
        run.step += 1
    torch.testing.assert_close([*run.parameters], [*other.parameters], rtol=1e-4, atol=1e-6)


def test_every_output_of_a_network_may_be_compared():
    run = Run(replace(RECIPE, loss=LossSection(every_output=True)), CPU)
    blurred, sharp = batch()
    outputs = run.model.forward_outputs(blurred)["outputs"]
    torch.testing.assert_close(run._loss(run.network, blurred, sharp), total_of_scales(outputs, sharp, run.recipe.loss))


def test_layers_that_draw_depend_on_the_step_alone():
    def drawn(run, step):
        run.step = step
        run._begin()
        return torch.rand(3)

    one, other = Run(RECIPE, CPU), Run(RECIPE, CPU)
    torch.rand(5)
    assert torch.equal(drawn(one, 4), drawn(other, 4)) and not torch.equal(drawn(one, 4), drawn(one, 5))


def test_the_contrastive_loss_is_off_without_its_weights_and_says_so(gopro, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    recipe = replace(RECIPE, loss=LossSection(contrast=0.0005), iterations=1)
    train(recipe, out=tmp_path / "off", pairs=gopro, device="cpu")
    said = [line for line in capsys.readouterr().err.splitlines() if "contrastive loss is off: " in line]
    assert len(said) == 1 and "vgg19-dcbb9e9d.pth: no weights of VGG-19" in said[0]
    assert "no weights of VGG-19" in lines(tmp_path / "off")[0]["off"]
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        named = replace(recipe, loss=replace(recipe.loss, vgg=str(tmp_path / "absent.pth")))
        train(named, out=tmp_path / "named", pairs=gopro, device="cpu")


def test_the_contrastive_loss_is_added_and_runs_stay_exact(gopro, tmp_path):
    torch.save(whole_file(random_weights()), tmp_path / "vgg.pth")
    section = LossSection(contrast=0.5, vgg=str(tmp_path / "vgg.pth"))
    recipe = replace(RECIPE, loss=section, iterations=2)
    run, (blurred, sharp) = Run(recipe, CPU), batch()
    restored = run.model(blurred)
    expected = total(restored, sharp, LossSection()) + 0.5 * run.contrast(restored, sharp, blurred)
    torch.testing.assert_close(run._loss(run.network, blurred, sharp), expected)
    train(recipe, out=tmp_path / "whole", pairs=gopro, device="cpu")
    for _ in range(2):
        train(recipe, out=tmp_path / "stopped", pairs=gopro, device="cpu", max_seconds=0)
    assert same(state(recipe, tmp_path / "whole")[1], state(recipe, tmp_path / "stopped")[1])


def test_the_log_goes_on_from_the_checkpoint(gopro, tmp_path):
    train(replace(RECIPE, log_every=1), out=tmp_path, pairs=gopro, device="cpu", max_seconds=0)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 1, "gain_db": 0.0}\n{"step": 2, "loss": 3}\n{"step": 1, "lo')
    train(replace(RECIPE, log_every=1), out=tmp_path, pairs=gopro, device="cpu")
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [1, 2, 3, 4]
    assert any(line.get("gain_db") == 0.0 for line in lines(tmp_path))
