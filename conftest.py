"""Every test and every docstring example draws the same random numbers, in whatever process and order it runs."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
