from fractions import Fraction

import numpy as np
import pytest

from slicescan.engine.data import DataError, average, frame_sets
from tests.engine.data.sets import picture, write


@pytest.mark.parametrize("gamma", [1.0, 2.2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_mean_of_equal_frames_is_the_frame(gamma, dtype):
    frame = np.linspace(0, np.iinfo(dtype).max, 257).astype(dtype).reshape(1, -1, 1)
    assert np.array_equal(average([frame] * 7, gamma), frame)


def test_without_gamma_values_are_averaged_and_rounded():
    frames = [picture(seed) for seed in range(5)]
    exact = [[Fraction(int(sum(int(frame[y, x, 0]) for frame in frames)), 5) for x in range(16)] for y in range(12)]
    rounded = np.array([[int(value + Fraction(1, 2)) for value in row] for row in exact])
    assert np.array_equal(average(frames, 1.0)[..., 0], rounded)


def test_with_gamma_light_is_averaged():
    frames = [picture(seed) for seed in range(3)]
    light = np.mean([np.power(frame / 255, 2.2) for frame in frames], 0)
    difference = average(frames, 2.2) - np.power(light, 1 / 2.2) * 255
    assert np.abs(difference).max() <= 0.5 + 1e-9
    assert (average(frames, 2.2) >= average(frames, 1.0)).all()  # a power mean grows with its power


def sequence(root, name, count):
    for number in range(1, count + 1):
        write(root, f"{name}/{number}.png", seed=number)


def test_sequences_become_pairs_whose_sharp_picture_is_the_middle_frame(tmp_path):
    sequence(tmp_path, "train/GOPR1", 11)
    sequence(tmp_path, "test/GOPR2", 5)
    test, train = frame_sets(tmp_path, 5)
    assert (test.split, train.split) == ("test", "train")
    assert [pair.name for pair in train.pairs] == ["train/GOPR1/3.png", "train/GOPR1/8.png"]
    assert [pair.name for pair in test.pairs] == ["test/GOPR2/3.png"]
    second = train.pairs[1]
    assert np.array_equal(second.sharp.read(), picture(8))
    assert np.array_equal(second.blurred.read(), average([picture(number) for number in range(6, 11)]))
    assert second.blurred.size() == second.sharp.size() == (12, 16)


def test_the_power_of_display_is_a_choice(tmp_path):
    sequence(tmp_path, "a", 3)
    plain, light = (frame_sets(tmp_path, 3, gamma)[0].pairs[0].blurred.read() for gamma in (1.0, 2.2))
    assert np.array_equal(plain, average([picture(i) for i in (1, 2, 3)], 1.0))
    assert not np.array_equal(plain, light)


def test_a_frame_of_another_size_is_named(tmp_path):
    sequence(tmp_path, "a", 3)
    write(tmp_path, "a/2.png", picture(0, 10, 16))
    with pytest.raises(
        DataError, match=r"2\.png: a frame of 16x10, uint8; the first of its exposure, 1.png, has 16x12"
    ):
        frame_sets(tmp_path, 3)[0].pairs[0].blurred.read()


@pytest.mark.parametrize("frames", [0, 1, 4, -3])
def test_an_even_number_of_frames_has_no_middle(frames, tmp_path):
    with pytest.raises(ValueError, match=rf"frames={frames}: an exposure is an odd number"):
        frame_sets(tmp_path, frames)


def test_a_sequence_that_is_too_short_is_an_error(tmp_path):
    sequence(tmp_path, "a", 3)
    with pytest.raises(DataError, match="no folder has 5 frames, the longest sequence has 3"):
        frame_sets(tmp_path, 5)
    with pytest.raises(ValueError, match=r"gamma=0: expected a positive power"):
        frame_sets(tmp_path, 3, 0)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        frame_sets(tmp_path / "absent", 3)
