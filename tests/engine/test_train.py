import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import slicescan
from slicescan.checkpoint import read_checkpoint
from slicescan.engine import quality, sources
from slicescan.engine import train as module
from slicescan.engine.config import BlurSection, DataSection, LossSection, ModelSection, OptimizerSection, Recipe, Stage
from slicescan.engine.pictures import read_pictures
from slicescan.engine.samples import GAP, LINE
from slicescan.engine.train import Run, describe, train
from slicescan.engine.training_state import read_state

RECIPE = Recipe(
    ModelSection("xyscannet_tiny", {"dim": 4, "blocks": [1, 1, 1], "state": 2}),
    DataSection(patch=16, batch=2),
    BlurSection(positions=3),
    optimizer=OptimizerSection(rate=2e-3, warmup=3, ema_decay=0.9),
    iterations=6,
    log_every=2,
    save_every=100,
    validate_every=100,
    tensorboard=False,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for index, (h, w) in enumerate([(60, 70), (48, 49)]):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        coarse.resize((w, h), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """The folder of a run of six steps."""
    out = tmp_path_factory.mktemp("undisturbed")
    train(RECIPE, out=out, photos=photos, device="cpu")
    return out


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def state(out):
    run = Run(RECIPE, CPU)
    step = read_state(out / "checkpoint", run.state())
    return step, [tensor.clone() for tensor in run.state()]


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 16, 16, generator=draw), torch.rand(2, 3, 16, 16, generator=draw)


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_run_stopped_after_every_step_ends_with_the_bits_of_an_undisturbed_one(photos, undisturbed, tmp_path):
    for step in range(1, RECIPE.iterations + 1):
        file = train(RECIPE, out=tmp_path, photos=photos, device="cpu", max_seconds=0)
        assert state(tmp_path)[0] == step
    (step, ours), (last, theirs) = state(tmp_path), state(undisturbed)
    assert step == last == RECIPE.iterations
    assert same(ours, theirs)
    theirs, ours = load_file(undisturbed / file.name), load_file(file)
    assert theirs.keys() == ours.keys() and same(theirs.values(), ours.values())


def test_a_run_that_crashed_goes_on_from_its_last_checkpoint(photos, undisturbed, tmp_path, monkeypatch):
    update, calls = Run.update, iter(range(100))

    def crash(self, *pair):
        if next(calls) == 4:
            raise KeyboardInterrupt
        update(self, *pair)

    recipe = replace(RECIPE, save_every=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "update", crash)
        train(recipe, out=tmp_path, photos=photos, device="cpu")
    assert state(tmp_path)[0] == 4
    train(recipe, out=tmp_path, photos=photos, device="cpu")
    assert same(state(tmp_path)[1], state(undisturbed)[1])


def test_a_finished_run_is_not_continued(photos, undisturbed):
    before = state(undisturbed)
    assert train(RECIPE, out=undisturbed, photos=photos, device="cpu").is_file()
    after = state(undisturbed)
    assert before[0] == after[0] and same(before[1], after[1])


def test_weights_are_written_before_the_checkpoint_that_says_so(photos, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_state", stop)
        train(RECIPE, out=tmp_path, photos=photos, device="cpu", max_seconds=0)
    assert (tmp_path / "xyscannet_tiny.safetensors").is_file()


def test_the_file_is_a_model_with_the_averaged_weights(undisturbed):
    model = slicescan.load(undisturbed / "xyscannet_tiny.safetensors")
    run = Run(RECIPE, CPU)
    read_state(undisturbed / "checkpoint", run.state())
    parameters = list(model.parameters())
    assert same(parameters, run.average)
    assert not same(parameters, run.parameters)
    assert not model.training


def test_the_file_for_others_has_the_weights_and_their_average(undisturbed):
    """Under the names that BasicSR uses; whoever loads it gets the average."""
    file = undisturbed / "xyscannet_tiny.pth"
    run = Run(RECIPE, CPU)
    read_state(undisturbed / "checkpoint", run.state())
    content = torch.load(file, weights_only=True)
    names = [name for name, _ in run.model.named_parameters()]
    assert same([content["params"][name] for name in names], run.parameters)
    assert same([content["params_ema"][name] for name in names], run.average)
    assert read_checkpoint(file).stripped == ("params_ema",)
    assert same(list(slicescan.load(file).parameters()), run.average)


def test_the_average_follows_the_weights():
    run = Run(RECIPE, CPU)
    expected = [parameter.detach().clone() for parameter in run.parameters]
    for seed in range(3):
        run.update(*batch(seed))
        run.step += 1
        expected = [0.9 * mean + 0.1 * new.detach() for mean, new in zip(expected, run.parameters, strict=True)]
    torch.testing.assert_close(run.average, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_without_finite_gradients_changes_no_weight_and_is_counted(bad):
    disturbed, other = Run(RECIPE, CPU), Run(RECIPE, CPU)
    for run in (disturbed, other):
        run.update(*batch(0))
        run.step += 1
    changing = len(disturbed.parameters)
    before = [tensor.clone() for tensor in disturbed.state()]
    blurred, sharp = batch(1)
    sharp[0, 0, 0, 0] = bad
    disturbed.update(blurred, sharp)
    after = disturbed.state()
    assert same(after[:changing], before[:changing])
    assert same(after[2 * changing :], before[2 * changing :])
    for run in (disturbed, other):
        run.update(*batch(2))
    assert same(disturbed.parameters, other.parameters)
    found, expected = disturbed.report(), other.report()
    assert (found.pop("skipped"), expected.pop("skipped")) == (1, 0)
    assert found == expected
    assert disturbed.report()["skipped"] == 0


def test_a_step_in_parts_between_which_processes_meet_is_the_step():
    whole, apart = Run(RECIPE, CPU), Run(RECIPE, CPU)
    met = []
    for seed in range(3):
        blurred, sharp = batch(seed)
        whole.update(blurred, sharp)
        apart.processes = SimpleNamespace(alone=False, part=(0, 2), average=met.append)
        (gradients, apply), meet = apart.parts(blurred.to(memory_format=torch.channels_last), sharp)
        apart._begin()
        gradients(), meet(), apply()
    assert len(met) == 3 and met[0].numel() == 1 + sum(p.numel() for p in whole.parameters)
    for one, other in zip(apart.state(), whole.state(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_processes_take_graphs_only_with_equal_shares_of_every_batch():
    run = Run(RECIPE, CPU)
    assert not run.in_graphs  # a CPU has none
    for last, equal in ((6, True), (5, False)):
        data = replace(RECIPE.data, batch=4, progressive=(Stage(3, 16, last),))
        run.recipe, run.processes = replace(RECIPE, data=data), SimpleNamespace(part=(0, 2))
        assert run._equal_shares() == equal


@pytest.mark.parametrize("recompute", [True, False])
def test_a_recipe_says_whether_layers_compute_maps_again(recompute):
    modules = Run(replace(RECIPE, recompute=recompute), CPU).model.modules()
    found = [module.recompute for module in modules if hasattr(module, "recompute")]
    assert len(found) > 10 and set(found) == {recompute}


def test_a_window_of_skipped_steps_has_no_loss():
    run = Run(RECIPE, CPU)
    blurred, sharp = batch()
    run.update(blurred, sharp * math.nan)
    found = run.report()
    assert found["skipped"] == 1 and math.isnan(found["loss"])


def test_the_loss_of_a_trivial_task_falls():
    optimizer = OptimizerSection(rate=5e-3, warmup=5, clip=1.0)
    run = Run(replace(RECIPE, optimizer=optimizer, iterations=30, loss=LossSection(edge=0.0)), CPU)
    sharp = torch.rand(2, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(2, 3, 16, 16)
    losses = []
    for _ in range(30):
        run.update(sharp - 0.1, sharp)
        run.step += 1
        losses.append(run.report()["loss"])
    assert losses[0] == pytest.approx(0.1, rel=0.5)
    assert losses[-1] < 0.4 * losses[0]


def test_the_gradient_is_clipped_to_its_norm():
    run = Run(replace(RECIPE, optimizer=replace(RECIPE.optimizer, clip=1e-3)), CPU)
    run.update(*batch())
    norm = torch.cat([parameter.grad.flatten() for parameter in run.parameters]).norm()
    assert run.report()["gradient_norm"] > 1e-3
    assert norm.item() == pytest.approx(1e-3, rel=1e-4)


def test_the_rate_warms_up_and_falls_along_a_cosine():
    section = OptimizerSection(rate=1.0, final_rate=0.1, warmup=4)
    run = Run(replace(RECIPE, optimizer=section, iterations=24), CPU)
    rates = [run.rate_at(step) for step in range(30)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[14] == pytest.approx(0.55)
    assert rates[24:] == pytest.approx([0.1] * 6)
    assert all(a >= b for a, b in zip(rates[3:], rates[4:], strict=False))


def test_vectors_and_spared_parameters_do_not_decay():
    run = Run(replace(RECIPE, optimizer=replace(RECIPE.optimizer, weight_decay=0.1)), CPU)
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    named = dict(run.model.named_parameters())
    assert len(decay) == len(named)
    for name, parameter in named.items():
        spared = parameter.ndim < 2 or name.endswith("A_log")
        assert decay[id(parameter)] == (0.0 if spared else 0.1), name


def test_every_line_of_the_log_is_json(undisturbed):
    first = lines(undisturbed)
    steps = [line for line in first if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6]
    assert set(steps[0]) == {"step", "loss", "gradient_norm", "skipped", "rate", "seconds_per_step"}
    assert any(line.get("of") == 6 and line["wall_seconds"] > 0 for line in first)


def test_photographs_held_out_are_measured(photos, tmp_path, monkeypatch):
    """In small: whole photographs instead of the crops of the quality check."""
    monkeypatch.setattr(quality, "blurred_crop", lambda photo, seed: (photo.flip(seed), photo))
    recipe = replace(RECIPE, validate_every=2, iterations=2, samples=1)
    train(recipe, out=tmp_path, photos=photos, validation=photos, device="cpu")
    (line,) = (line for line in lines(tmp_path) if "gain_db" in line)
    restore = slicescan.load(tmp_path / "xyscannet_tiny.safetensors")
    found = []
    for _, photo in read_pictures(photos):
        restored = slicescan.restore(restore, photo.flip(len(found)).permute(1, 2, 0).numpy())
        found.append(quality.psnr(torch.from_numpy(restored).permute(2, 0, 1), photo))
    assert line["step"] == 2 and line["psnr_db"] == pytest.approx(sum(found) / 2)
    with Image.open(tmp_path / "samples" / "step-00000002.png") as sheet:
        shown = torch.from_numpy(np.array(sheet)).permute(2, 0, 1)
    h, w = read_pictures(photos)[0][1].shape[1:]
    for column, picture in ((0, read_pictures(photos)[0][1].flip(0)), (2, read_pictures(photos)[0][1])):
        left = GAP + column * (w + GAP)
        assert torch.equal(shown[:, LINE : LINE + h, left : left + w], picture)


def test_iterations_replace_those_of_the_recipe(photos, tmp_path):
    train(RECIPE, out=tmp_path, photos=photos, device="cpu", iterations=1)
    assert state(tmp_path)[0] == 1


def test_a_recipe_is_read_from_its_file(photos, tmp_path):
    text = 'iterations = 1\n[model]\nname = "xyscannet_tiny"\narguments = { dim = 4, blocks = [1, 1, 1], state = 2 }\n'
    (tmp_path / "run.toml").write_text(text + f'[data]\nphotos = "{photos.as_posix()}"\npatch = 16\nbatch = 1\n')
    assert train(tmp_path / "run.toml", out=tmp_path / "out", device="cpu").is_file()


def test_a_run_without_photographs_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"pass photos=, or --photos"):
        train(RECIPE, out=tmp_path, device="cpu")
    with pytest.raises(FileNotFoundError, match="absent: no images found"):
        train(RECIPE, out=tmp_path, photos=tmp_path / "absent", device="cpu")


def test_the_folder_of_another_run_is_an_error(undisturbed, photos):
    recipe = replace(RECIPE, model=ModelSection("xyscannet_tiny", {"dim": 8, "blocks": [1, 1, 1], "state": 2}))
    with pytest.raises(ValueError, match=r"checkpoint: tensor \d+ is"):
        train(recipe, out=undisturbed, photos=photos, device="cpu")


def test_a_failure_while_making_a_batch_ends_the_run(photos, tmp_path, monkeypatch):
    def fail(self, step, part):
        raise RuntimeError(f"batch {step}")

    monkeypatch.setattr(sources.SyntheticMotionBlur, "batch", fail)
    with pytest.raises(RuntimeError, match="batch 0"):
        train(RECIPE, out=tmp_path, photos=photos, device="cpu")


def test_a_recipe_is_described_as_json():
    assert json.loads(describe(RECIPE))["model"]["arguments"]["dim"] == 4
