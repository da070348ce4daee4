import pytest

from slicescan.engine.metrics import PROTOCOLS, find_protocol, psnr, ssim, volume_ssim
from slicescan.engine.metrics.realblur import align, aligned_psnr, aligned_ssim
from tests.engine.metrics.pictures import blurred, texture


def test_each_protocol_measures_what_it_names():
    sharp = texture(60, 70)
    restored = blurred(sharp, 3)
    aligned = align(restored, sharp)
    volume = {"psnr": psnr(restored, sharp), "ssim": volume_ssim(restored, sharp)}
    expected = {
        "gopro": volume,
        "hide": volume,
        "realblur": {"psnr": aligned_psnr(aligned), "ssim": aligned_ssim(aligned)},
        "plain": {"psnr": psnr(restored, sharp), "ssim": ssim(restored, sharp)},
    }
    assert {name: p.compare(restored, sharp) for name, p in PROTOCOLS.items() if p.compare} == expected
    assert len({figures["ssim"] for figures in expected.values()}) == 3


def test_only_real_photographs_are_padded_to_eight():
    assert {name: p.multiple for name, p in PROTOCOLS.items()} == {
        "gopro": 1,
        "hide": 1,
        "realblur": 8,
        "rwbi": 8,
        "plain": 1,
    }


def test_an_unknown_protocol_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match="no protocol 'gpro'; did you mean 'gopro'"):
        find_protocol("gpro")
    with pytest.raises(ValueError, match="There are gopro, hide, realblur, rwbi, plain"):
        find_protocol("imagenet")
