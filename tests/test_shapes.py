"""What is read off names and shapes of weights, damaged ones included."""

import pytest
import torch

from slicescan.checkpoint import Shapes


def shapes(**given: tuple[int, ...]) -> Shapes:
    return Shapes({name.replace("__", "."): torch.empty(shape, device="meta") for name, shape in given.items()})


def test_the_commonest_size_wins_over_a_damaged_one():
    found = shapes(a__0__w=(8, 3), a__1__w=(8, 3), a__2__w=(9, 3), b=(5,))
    assert found.size(("a.*.w", 0)) == 8 and found.size(("a.*.w", 1), ("b", 0)) == 3
    assert found.size(("c", 0)) == 0 and found.size(("b", 1)) == 0


def test_parts_are_counted_by_the_highest_number():
    found = shapes(a__0__w=(1,), a__11__w=(1,), ab__20__w=(1,), a__weight=(1,))
    assert found.count("a") == 12 and found.count("c") == 0


@pytest.mark.parametrize(
    ("factor", "widths"), [(2.66, (48, 96, 192, 384)), (1.0, (8,)), (0.75, (8, 16, 32)), (1.4, (5, 10)), (2.0, (3, 5))]
)
def test_a_factor_is_the_shortest_that_gives_every_width(factor, widths):
    found = shapes(**{f"a__{i}__w": (int(width * factor), width) for i, width in enumerate(widths)})
    assert found.factor("a.*.w", 0, 1) == factor
    damaged = Shapes({})
    damaged.update({**found, **{f"b.{key}": shape for key, shape in found.items()}, "a.9.w": (1, 7), "a.8.w": (1,)})
    assert damaged.factor("*.w", 0, 1) == factor


def test_a_lost_or_lonely_companion_does_not_change_what_most_have():
    found = shapes(a__w=(1,), b__w=(1,), c__w=(1,), a__b=(1,), b__b=(1,))
    assert found.most("*.w", "*.b") and not found.most("*.w", "a.b") and not shapes().most("*.w", "*.b")


def test_without_widths_a_factor_is_one():
    assert shapes().factor("*", 0, 1) == 1.0 and shapes(a=(3, 0)).factor("a", 0, 1) == 1.0
