import pytest
import torch
import torch.nn.functional as F

from slicescan.engine.crops import crops
from slicescan.engine.words import words

CPU = torch.device("cpu")
AS_THEY_ARE = torch.zeros(5, 3, dtype=torch.bool)


def cut(side, seed=0):
    return torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_cut_of_the_right_side_keeps_its_bits_beside_larger_ones():
    assert torch.equal(crops([cut(12), cut(23)], 12, AS_THEY_ARE[:2], CPU)[0], cut(12).float() / 255)


@pytest.mark.parametrize("side", [5, 12, 31])
def test_larger_cuts_are_shrunk_as_torch_does_with_antialiasing(side):
    cuts = [cut(side + more, more) for more in (0, 1, 3, side // 2, side)]
    for one, made in zip(cuts, crops(cuts, side, AS_THEY_ARE, CPU), strict=True):
        expected = F.interpolate(one[None].float() / 255, (side, side), mode="bilinear", antialias=True)[0]
        # sums of a few dozen products of values up to 1, in float32
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_turns_are_the_eight_symmetries_of_a_square():
    ways = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    made = crops([cut(6)] * 8, 6, ways, CPU)
    image = cut(6).float() / 255
    expected = [turned for k in range(4) for turned in (image.rot90(k, (1, 2)), image.rot90(k, (1, 2)).flip(2))]
    assert all(sum(torch.equal(one, other) for one in made) == 1 for other in expected)


@pytest.mark.parametrize("seed", range(5))
def test_words_cover_a_part_of_an_image_with_their_colours(seed):
    keep, paint = words(60, torch.Generator().manual_seed(seed))
    image = torch.rand(3, 60, 60, generator=torch.Generator().manual_seed(seed))
    written = image * keep + paint
    free = (keep == 1).expand_as(image)
    assert torch.equal(written[free], image[free]) and 0 < free.float().mean() < 1
    assert keep.min() >= 0 and written.min() >= 0 and written.max() <= 1 + 1e-6
    assert all(
        torch.equal(*pair) for pair in zip((keep, paint), words(60, torch.Generator().manual_seed(seed)), strict=True)
    )
