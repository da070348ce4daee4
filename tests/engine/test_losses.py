import numpy as np
import pytest
import torch
from scipy import fft, ndimage

from slicescan.engine.config import LossSection
from slicescan.engine.losses import charbonnier, edge, frequency, psnr, total, total_of_scales

K = (0.05, 0.25, 0.4, 0.25, 0.05)
SIZES = [(1, 1, 4, 4), (2, 3, 7, 10)]


def pair(shape, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=draw, dtype=dtype) for _ in range(2))


def gauss(image):
    """5x5 blur of ``(h, w)``, one output at a time; edges repeated."""
    h, w = image.shape
    out = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            for i in range(5):
                for j in range(5):
                    row, column = min(max(y + i - 2, 0), h - 1), min(max(x + j - 2, 0), w - 1)
                    out[y, x] += K[i] * K[j] * image[row, column]
    return out


def laplacian(image):
    blurred = gauss(image)
    kept = np.zeros_like(blurred)
    kept[::2, ::2] = 4 * blurred[::2, ::2]
    return image - gauss(kept)


def plain_charbonnier(a, b, eps=1e-3):
    return np.sqrt((a - b) ** 2 + eps**2).mean()


def plain_edge(a, b):
    planes = zip(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), strict=True)
    return np.mean([plain_charbonnier(laplacian(x), laplacian(y)) for x, y in planes])


def plain_frequency(a, b):
    h, w = a.shape[2:]
    rows = np.exp(-2j * np.pi * np.outer(np.arange(h), np.arange(h)) / h)
    columns = np.exp(-2j * np.pi * np.outer(np.arange(w), np.arange(w)) / w)
    difference = rows @ a @ columns - rows @ b @ columns
    return (np.abs(difference.real).mean() + np.abs(difference.imag).mean()) / 2


def plain_psnr(a, b):
    return -np.mean([10 * np.log10(1 / (((x - y) ** 2).mean() + 1e-8)) for x, y in zip(a, b, strict=True)])


PLAIN = {charbonnier: plain_charbonnier, edge: plain_edge, frequency: plain_frequency, psnr: plain_psnr}


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("loss", PLAIN, ids=lambda loss: loss.__name__)
def test_value_is_that_of_the_formula(loss, shape):
    a, b = pair(shape)
    assert loss(a, b).item() == pytest.approx(PLAIN[loss](a.numpy(), b.numpy()), rel=1e-12)


def test_edge_is_that_of_another_filter():
    """The Laplacian by scipy's separable correlation: the kernel is symmetric, edges are repeated."""
    a, b = (image.numpy() for image in pair((2, 3, 9, 12)))

    def blurred(x):
        return ndimage.correlate1d(ndimage.correlate1d(x, K, axis=2, mode="nearest"), K, axis=3, mode="nearest")

    details = []
    for image in (a, b):
        kept = np.zeros_like(image)
        kept[..., ::2, ::2] = 4 * blurred(image)[..., ::2, ::2]
        details.append(image - blurred(kept))
    assert edge(*map(torch.from_numpy, (a, b))).item() == pytest.approx(plain_charbonnier(*details), rel=1e-12)


def test_frequency_is_that_of_another_transform():
    a, b = (image.numpy() for image in pair((2, 3, 9, 12)))
    difference = fft.fft2(a) - fft.fft2(b)
    expected = np.mean([np.abs(difference.real), np.abs(difference.imag)])
    assert frequency(*map(torch.from_numpy, (a, b))).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", PLAIN, ids=lambda loss: loss.__name__)
def test_gradient_is_the_slope_of_the_value(loss):
    a, b = pair((1, 2, 5, 6))
    assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("loss", [charbonnier, edge])
def test_equal_images_are_epsilon_apart_and_have_no_gradient(loss):
    a, _ = pair((1, 3, 6, 6))
    a.requires_grad_()
    value = loss(a, a.detach())
    (gradient,) = torch.autograd.grad(value, a)
    assert value.item() == pytest.approx(1e-3)
    assert gradient.abs().max() == 0


def test_psnr_of_equal_images_is_bounded_and_has_no_gradient():
    a, _ = pair((2, 3, 6, 6))
    a.requires_grad_()
    value = psnr(a, a.detach())
    (gradient,) = torch.autograd.grad(value, a)
    assert value.item() == pytest.approx(-80)
    assert gradient.abs().max() == 0


def test_total_is_the_weighted_sum():
    a, b = pair((1, 3, 8, 8))
    weights = LossSection(charbonnier=2.0, edge=0.5, frequency=0.25, psnr=0.125)
    expected = 2 * charbonnier(a, b) + 0.5 * edge(a, b) + 0.25 * frequency(a, b) + 0.125 * psnr(a, b)
    torch.testing.assert_close(total(a, b, weights), expected)


def test_a_term_without_weight_is_not_computed():
    tensor = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    assert total(tensor, tensor * torch.inf, LossSection(0.0, 0.0, 0.0, 0.0)).item() == 0


def test_the_contrastive_term_gets_what_the_network_saw():
    a, b = pair((1, 3, 8, 8))
    blurred, weights = a + b, LossSection(charbonnier=0.0, edge=0.0, contrast=0.5)
    found = total(a, b, weights, blurred=blurred, contrast=lambda r, s, i: (r + 2 * s + 4 * i).sum())
    torch.testing.assert_close(found, 0.5 * (a + 2 * b + 4 * blurred).sum())
    assert total(a, b, weights).item() == 0  # without the term's weights it is off


def test_every_scale_is_compared_with_the_mean_of_its_pixels():
    a, b = pair((2, 3, 8, 12))
    weights = LossSection(charbonnier=1.0, edge=0.0, frequency=0.1)

    def halved(x):
        return (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4

    outputs = [a, halved(a) ** 2, halved(halved(a)) ** 3]
    # a quarter by bilinear interpolation without antialiasing: the mean of the four pixels in the middle of each cell
    quarter = (b[..., 1::4, 1::4] + b[..., 1::4, 2::4] + b[..., 2::4, 1::4] + b[..., 2::4, 2::4]) / 4
    expected = sum(total(x, y, weights) for x, y in zip(outputs, [b, halved(b), quarter], strict=True))
    torch.testing.assert_close(total_of_scales(outputs, b, weights), expected)
