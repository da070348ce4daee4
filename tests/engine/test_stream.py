"""Streaming where memory is short, and its place among the modes of restoring."""

import pytest
import torch
from torch import Tensor, nn

from slicescan import create_model, restore
from slicescan.engine.memory import bytes_a_pixel
from slicescan.engine.stream import ROWS, rows_that_fit, stream, why_not
from slicescan.models.xyscannet import XYScanNet
from tests.models.weights import error

SMALL = {"dim": 8, "blocks": (1, 1, 1), "state": 4}


class Watched(XYScanNet):
    """Counts how it is run, and runs out of memory above some rows; a whole image has all its rows."""

    def __init__(self, most_rows: int = 10**6):
        super().__init__(**SMALL)
        self.most_rows, self.ways = most_rows, []
        self.need = bytes_a_pixel(self, super().forward, 3)  # remembered

    def forward(self, x: Tensor) -> Tensor:
        return self._run("whole", x.shape[2], lambda: super(Watched, self).forward(x))

    def stream(self, x: Tensor, rows: int = 64) -> Tensor:
        return self._run("stream", rows, lambda: super(Watched, self).stream(x, rows))

    def _run(self, way, rows, result) -> Tensor:
        self.ways.append((way, rows))
        if rows > self.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 170, 100, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def free(monkeypatch):
    """Sets the bytes that seem to be free."""

    def seem(free: float | None) -> None:
        monkeypatch.setattr("slicescan.engine.restore.free_memory", lambda device: free)

    return seem


def test_running_out_of_memory_halves_the_strips(image):
    model = Watched(most_rows=20)
    streamed = stream(model, image)
    assert model.ways == [("stream", 64), ("stream", 32), ("stream", 16)]
    model.most_rows = 10**6
    with torch.no_grad():
        assert error(streamed, model(image)) < 1e-5


def test_what_does_not_even_fit_in_the_thinnest_strips_is_an_error(image):
    model = Watched(most_rows=3)
    with pytest.raises(MemoryError, match="an image of 100x170 does not fit into memory even when streamed"):
        stream(model, image, rows=9)
    assert [rows for _, rows in model.ways] == [9, 4]


def test_other_errors_are_no_reason_to_go_on(image):
    with pytest.raises(ValueError, match="expects.*float32"):
        stream(Watched(), image.double())


def test_networks_that_cannot_stream_say_why(image):
    flattened = create_model("xyscannet_small_mambair", **SMALL)
    assert why_not(Watched()) is None
    for model, reason in ((flattened, "the scans of ss2d"), (nn.Identity(), "it is no model of this package")):
        assert str(why_not(model)).startswith(reason)
        for run in (lambda m=model: stream(m, image), lambda m=model: restore(m, image, mode="stream")):
            with pytest.raises(ValueError, match=f"cannot stream: {reason}.*use mode='auto', 'whole' or 'tile'"):
                run()


def test_strips_are_as_tall_as_memory_allows():
    model = Watched()
    maps, row = 500 * 100 * model.stream_channels * 4, 100 * model.need
    for rows, expected in ((3, 0), (4, 4), (30, 30), (500, ROWS)):
        assert rows_that_fit(model, (1, 3, 500, 100), maps + (rows + 0.5) * row, model.need) == expected


def test_restoring_as_a_stream_equals_restoring_the_whole(image):
    model = create_model("xyscannet_tiny", **SMALL)
    for settings in ({}, {"ensemble": True}):
        whole = restore(model, image[0], mode="whole", **settings)
        assert error(restore(model, image[0], mode="stream", **settings), whole) < 1e-6


def test_auto_takes_the_first_of_whole_stream_and_tiles_that_fits(image, free):
    need = Watched().need
    pixels = image.shape[2] * image.shape[3]
    ways = []
    for memory in (None, 2 * pixels * need, 0.7 * pixels * need, 10 * need):
        model = Watched()
        free(memory)
        restore(model, image)
        ways.append(model.ways)
    assert ways[0] == ways[1] == [("whole", 170)]
    assert len(ways[2]) == 1 and ways[2][0][0] == "stream"
    assert {way for way, _ in ways[3]} == {"whole"} and len(ways[3]) > 1  # tiles


def test_auto_goes_on_where_memory_is_shorter_than_it_seems(image):
    model = Watched(most_rows=40)
    restore(model, image)
    assert model.ways == [("whole", 170), ("stream", 64), ("stream", 32)]


def test_auto_streams_on_a_cpu_what_is_not_small(free):
    free(None)
    large = torch.rand(1, 3, 258, 256, generator=torch.Generator().manual_seed(0))
    model = Watched()
    restored = restore(model, large)
    assert model.ways == [("stream", 64)]
    assert error(restored, restore(model, large, mode="whole")) < 1e-6


def test_auto_tiles_what_cannot_be_streamed(image, free):
    free(1)
    streamed = create_model("xyscannet_small_mambair", **SMALL)
    assert restore(streamed, image).shape == image.shape


def test_a_named_tile_is_a_wish_for_tiles(image):
    model = Watched()
    restore(model, image, tile=64)
    assert {way for way, _ in model.ways} == {"whole"} and len(model.ways) > 1
