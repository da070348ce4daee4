import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from slicescan.engine.config import DataSection, Stage
from slicescan.engine.data import DataError, File, Pair, PairPatches, choose, find_sets
from slicescan.engine.data.kept import Kept
from tests.engine.data.sets import picture, write

DATA = DataSection(patch=8, batch=3)
PLAIN = replace(DATA, flips=False, quarter_turns=0.0)


def coordinates(index, h, w):
    """A picture whose pixels say where they are, and in which picture."""
    y, x = np.mgrid[:h, :w]
    return np.stack([y, x, np.full((h, w), index)], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for index, (h, w) in enumerate([(12, 16), (8, 30), (20, 8), (9, 9), (40, 50)]):
        write(root, f"blur/{index}.png", coordinates(index, h, w))
        write(root, f"sharp/{index}.png", 255 - coordinates(index, h, w))
    return choose(find_sets(root)).pairs


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def bytes_of(image):
    return image.mul(255).round().to(torch.uint8)


def seen(source, steps):
    """Indices of the pairs in batches, told by their pixels."""
    return [int(value) for step in range(steps) for value in bytes_of(source.batch(step)[0])[:, 2, 0, 0]]


def test_both_pictures_of_a_pair_are_cut_and_turned_alike(pairs):
    source = PairPatches(pairs, DATA)
    for step in range(20):
        blurred, sharp = source.batch(step)
        assert blurred.dtype == torch.float32 and blurred.shape == sharp.shape == (3, 3, 8, 8)
        torch.testing.assert_close(blurred + sharp, torch.ones_like(sharp))


def test_a_patch_is_a_contiguous_piece_of_its_picture(pairs):
    for step in range(20):
        for patch in bytes_of(PairPatches(pairs, PLAIN).batch(step)[0]).int():
            ys, xs = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
            assert torch.equal(patch[0] - patch[0, 0, 0], ys.int()) and torch.equal(patch[1] - patch[1, 0, 0], xs.int())


def test_an_item_depends_on_nothing_but_seed_epoch_and_index(pairs):
    one, other = PairPatches(pairs, DATA, seed=5), PairPatches(pairs, replace(DATA, batch=2), seed=5)
    other.batch(3)  # what was made before does not matter
    assert same(one.item(2, 1, 8), other.item(2, 1, 8))
    big = PairPatches(pairs, DATA, seed=5)
    assert not same(big.item(2, 4, 8), big.item(3, 4, 8))
    assert not same(big.item(2, 4, 8), PairPatches(pairs, DATA, seed=6).item(2, 4, 8))
    assert same(one.batch(7), PairPatches(pairs, DATA, seed=5).batch(7))


def test_memory_changes_no_bit(pairs):
    for step in range(4):
        assert same(PairPatches(pairs, DATA).batch(step), PairPatches(pairs, replace(DATA, memory=0.0)).batch(step))


def test_every_epoch_has_every_pair_once_in_another_order(pairs):
    found = seen(PairPatches(pairs, DATA), 10)
    epochs = [tuple(found[start : start + 5]) for start in range(0, 30, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_the_last_batch_may_hold_what_is_left(pairs):
    source = PairPatches(pairs, replace(DATA, short_last=True))
    assert [len(source.batch(step)[0]) for step in range(4)] == [3, 2, 3, 2]
    found = seen(source, 4)
    assert sorted(found[:5]) == sorted(found[5:]) == [0, 1, 2, 3, 4]
    whole = PairPatches(pairs, replace(DATA, short_last=True, batch=5))
    assert [len(whole.batch(step)[0]) for step in range(2)] == [5, 5]


def test_patches_grow_by_schedule_and_no_pair_is_left_out(pairs):
    data = replace(DATA, patch=4, batch=4, progressive=(Stage(2, 6, 2), Stage(3, 8, 1)))
    source = PairPatches(pairs, data)
    assert [tuple(source.batch(step)[0].shape) for step in range(5)] == [
        (4, 3, 4, 4), (4, 3, 4, 4), (2, 3, 6, 6), (1, 3, 8, 8), (1, 3, 8, 8),
    ]  # fmt: skip
    found = seen(source, 8)
    assert sorted(found[:5]) == sorted(found[5:10]) == sorted(found[10:15]) == [0, 1, 2, 3, 4]


def orientation(patch):
    """Which of the eight symmetries was drawn, told by the directions in which the two coordinates grow."""
    patch = bytes_of(patch).int()
    return tuple(int(v) for v in (*(patch[:2, 0, 1] - patch[:2, 0, 0]), *(patch[:2, 1, 0] - patch[:2, 0, 0])))


@pytest.mark.parametrize(("turns", "shares"), [(0.5, [1 / 8] * 8), (0.25, [3 / 16] * 4 + [1 / 16] * 4)])
def test_symmetries_come_as_often_as_they_should(pairs, turns, shares):
    source, count = PairPatches(pairs, replace(DATA, quarter_turns=turns)), 1600
    found = [orientation(source.item(epoch, 4, 8)[0]) for epoch in range(count)]
    frequency = {one: found.count(one) / count for one in set(found)}
    upright = sorted(share for one, share in frequency.items() if one[0] == 0)
    turned = sorted(share for one, share in frequency.items() if one[0] != 0)
    for share, expected in zip([*upright, *turned], shares, strict=True):
        # four and a half standard deviations of a share of the draws
        assert abs(share - expected) < 4.5 * (expected * (1 - expected) / count) ** 0.5


def test_places_are_uniform_up_to_the_last(pairs):
    source = PairPatches(pairs, PLAIN)
    tops = [int(bytes_of(source.item(epoch, 0, 8)[0])[0, 0, 0]) for epoch in range(500)]
    assert set(tops) == {0, 1, 2, 3, 4}


def test_channels_may_come_in_the_order_of_opencv(pairs):
    rgb, bgr = (PairPatches(pairs, replace(DATA, channels=order)).batch(0) for order in ("rgb", "bgr"))
    assert same(rgb, [image.flip(1) for image in bgr])


def test_sixteen_bits_are_not_cut(tmp_path):
    cv2 = pytest.importorskip("cv2")
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / "1.png"), deep[..., ::-1])
    blurred, _ = PairPatches(choose(find_sets(tmp_path)).pairs, PLAIN).item(0, 0, 8)
    assert torch.equal(blurred, torch.from_numpy(deep.transpose(2, 0, 1).astype(np.float32) / np.float32(65535)))


def test_grey_pictures_become_three_channels(tmp_path):
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        Image.fromarray(picture(0)[..., 0]).save(tmp_path / side / "1.png")
    blurred, _ = PairPatches(choose(find_sets(tmp_path)).pairs, PLAIN).item(0, 0, 8)
    assert torch.equal(blurred[0], blurred[1]) and torch.equal(blurred[0], blurred[2])


def failing(root, data=DATA):
    with pytest.raises((ValueError, OSError)) as error:
        PairPatches(choose(find_sets(root)).pairs, data).batch(0)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_partners_of_different_sizes_are_named(tmp_path):
    blurred, sharp = write(tmp_path, "blur/1.png"), write(tmp_path, "sharp/1.png", picture(0, 10, 16))
    assert failing(tmp_path) == f"{blurred}: 16x12 pixels, its sharp partner {sharp} 16x10"


def test_a_picture_smaller_than_a_patch_is_named(tmp_path):
    blurred, _ = write(tmp_path, "blur/1.png"), write(tmp_path, "sharp/1.png")
    assert failing(tmp_path, DataSection(patch=13)) == f"{blurred}: 16x12 pixels, smaller than a patch of 13"


@pytest.mark.parametrize("content", [b"", b"text", "cut"])
def test_an_unreadable_picture_is_named(tmp_path, content):
    blurred, _ = write(tmp_path, "blur/1.png"), write(tmp_path, "sharp/1.png")
    blurred.write_bytes(blurred.read_bytes()[:200] if content == "cut" else content)
    assert re.match(rf"{re.escape(str(blurred))}: (not an image|damaged)", failing(tmp_path))


def test_pairs_without_a_sharp_picture_or_none_at_all_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no pairs"):
        PairPatches([], DATA)
    with pytest.raises(DataError, match=r"x\.png: no sharp partner to learn from"):
        PairPatches([Pair("x", File(tmp_path / "x.png"), None)], DATA)


def test_what_is_kept_stays_within_its_bytes_and_is_read_once():
    kept, reads = Kept(most=10), []

    def read(index):
        reads.append(index)
        return np.full(4, index, np.uint8)

    for index in (0, 1, 0, 2, 0, 1):
        assert (kept.get(index, lambda index=index: read(index)) == index).all()
        assert kept.bytes == 4 * len(kept) <= 10
    assert reads == [0, 1, 2, 1]
