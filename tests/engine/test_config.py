import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import slicescan
from slicescan.engine.config import LossSection, ModelSection, Recipe, Stage, find_recipe, read_recipe
from slicescan.engine.train import describe

RECIPES = sorted((Path(slicescan.__file__).parent / "recipes").glob("*.toml"))
MODEL = '[model]\nname = "xyscannet_tiny"\n'


@pytest.fixture
def read(tmp_path):
    def read(text):
        file = tmp_path / "run.toml"
        file.write_text(text, encoding="utf-8")
        return read_recipe(file)

    return read


def toml(table, name=""):
    """A table of plain values and tables as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    head = [f"[{name}]"] if name else []
    return "\n".join([*head, *lines, *(toml(value, f"{name}.{key}".strip(".")) for key, value in tables.items())])


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_of_the_package_builds_its_model(file):
    recipe = read_recipe(file)
    assert recipe.iterations > recipe.optimizer.warmup
    assert slicescan.is_model(recipe.model.name)
    with torch.device("meta"):
        model = slicescan.create_model(recipe.model.name, **recipe.model.arguments)
    x = torch.empty(1, 3, 8, 8, device="meta")
    assert model.to("meta")(x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "pairs", "epochs"),
    [
        ("xyscannet_plus_gopro_stage1", 2103, 4000),
        ("xyscannet_plus_gopro_stage2", 2103, 4000),
        ("xyscannet_plus_realblur", 3758, 2000),
        ("xyscannet_small_gopro", 2103, 3000),
    ],
)
def test_published_epochs_are_counted_in_steps(name, pairs, epochs):
    recipe = read_recipe(find_recipe(name))
    in_epoch = math.ceil(pairs / recipe.data.batch)
    assert recipe.data.short_last and recipe.optimizer.hold == in_epoch
    assert recipe.iterations == epochs * in_epoch
    assert recipe.loss == LossSection(charbonnier=1.0, edge=0.05, contrast=0.0005)


def test_ablations_differ_in_nothing_but_the_network():
    ablations = [read_recipe(file) for file in RECIPES if file.stem.startswith("xyscannet_small")]
    assert len({recipe.model.name for recipe in ablations}) == 6
    first = ablations[0]
    assert all(dataclasses.replace(recipe, model=first.model) == first for recipe in ablations)
    assert first.data.patch == 128


def test_a_schedule_of_patches_is_a_list_of_tables(read):
    text = MODEL + "[data]\n[[data.progressive]]\nstep = 10\npatch = 64\nbatch = 4\n[[data.progressive]]\nstep = 20\n"
    assert read(text + "patch = 96\nbatch = 2\n").data.progressive == (Stage(10, 64, 4), Stage(20, 96, 2))
    with pytest.raises(ValueError, match=r"run.toml: data.progressive\[1\].the key 'patch' is missing"):
        read(text)
    with pytest.raises(ValueError, match=r"data.progressive: expected a list, got 3"):
        read(MODEL + "[data]\nprogressive = 3\n")
    with pytest.raises(ValueError, match=r"run.toml: data.progressive: steps must grow from 1 on, got \[10, 10\]"):
        read(text.replace("20", "10") + "patch = 96\nbatch = 2\n")
    with pytest.raises(ValueError, match=r"run.toml: data.progressive and short_last do not go together"):
        read(text.replace("[data]\n", "[data]\nshort_last = true\n") + "patch = 96\nbatch = 2\n")


def test_the_package_has_recipes():
    assert RECIPES


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_written_as_toml_reads_back_the_same(file, read):
    recipe = read_recipe(file)
    assert read(toml(dataclasses.asdict(recipe))) == recipe
    assert read(toml(json.loads(describe(recipe)))) == recipe


def test_what_a_file_leaves_out_takes_its_default(read):
    assert read(MODEL) == Recipe(ModelSection("xyscannet_tiny"))


def test_values_and_model_arguments_are_read(read):
    recipe = read('iterations = 7\nseed = 1\namp = "bf16"\n[model]\nname = "m"\narguments = { blocks = [1, 1, 1] }\n')
    assert (recipe.iterations, recipe.seed, recipe.amp) == (7, 1, "bf16")
    assert recipe.model == ModelSection("m", {"blocks": [1, 1, 1]})


def test_whole_numbers_stand_for_floats_and_lists_for_pairs(read):
    recipe = read(MODEL + "[blur]\nextent = [2, 9]\n[optimizer]\nclip = 1\n")
    assert recipe.blur.extent == (2.0, 9.0) and isinstance(recipe.blur.extent[0], float)
    assert isinstance(recipe.optimizer.clip, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iteration = 3\n" + MODEL, "unknown key 'iteration'; did you mean 'iterations'?"),
        (MODEL + "[optimizer]\nwarm_up = 3\n", "optimizer.unknown key 'warm_up'; did you mean 'warmup'?"),
        (MODEL + "[optimiser]\nrate = 1.0\n", "unknown key 'optimiser'; did you mean 'optimizer'?"),
        (MODEL + "[loss]\nqqqq = 1\n", "unknown key 'qqqq'; known keys: charbonnier, edge, frequency"),
        ("iterations = 3\n", "the key 'model' is missing"),
        ("[model]\n", "the key 'name' is missing"),
        ("model = 3\n", "model: expected a table, got 3"),
        ("iterations = 3.5\n" + MODEL, "iterations: expected int, got 3.5"),
        ("iterations = true\n" + MODEL, "iterations: expected int, got True"),
        ('iterations = "3"\n' + MODEL, "iterations: expected int, got '3'"),
        ("cuda_graph = 1\n" + MODEL, "cuda_graph: expected bool, got 1"),
        ('amp = "fp8"\n' + MODEL, "amp: expected one of 'none', 'bf16', 'fp16', got 'fp8'"),
        ("[model]\nname = 3\n", "model.name: expected str, got 3"),
        (MODEL + "arguments = 3\n", "model.arguments: expected mapping, got 3"),
        (MODEL + "[optimizer]\nrate = true\n", "optimizer.rate: expected float, got True"),
        (MODEL + "[blur]\nextent = [1.0]\n", "blur.extent: expected 2 values, got [1.0]"),
        (MODEL + "[blur]\nextent = 3.0\n", "blur.extent: expected 2 values, got 3.0"),
        (MODEL + '[blur]\nextent = [1.0, "x"]\n', "blur.extent: expected float, got 'x'"),
        ("iterations = \n", "not a TOML file"),
    ],
)
def test_a_mistake_is_named_with_its_file(read, text, message):
    with pytest.raises(ValueError) as error:
        read(text)
    assert "run.toml: " in str(error.value)
    assert message in str(error.value)


def test_a_file_in_another_encoding_is_no_recipe(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"run.toml: not a TOML file"):
        read_recipe(tmp_path / "run.toml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.toml: no such recipe"):
        read_recipe(tmp_path / "absent.toml")
