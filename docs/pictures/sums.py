"""One sum in many orders: why additions that race each other do not repeat."""

import torch
from card import BLUE, RED, card

COUNT, ORDERS = 4096, 2000


def draw():
    """How often each result comes out, over random orders; the fixed order has one."""
    draws = torch.Generator().manual_seed(0)
    numbers = torch.randn(COUNT, generator=draws)
    exact = numbers.double().sum().item()

    def sums(orders: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(ORDERS)
        for place in orders.T:
            total += numbers[place]
        return total.double() - exact

    racing = sums(torch.stack([torch.randperm(COUNT, generator=draws) for _ in range(ORDERS)]))
    fixed = sums(torch.arange(COUNT).expand(ORDERS, COUNT))
    figure, axes = card(2, 1, 3.6, sharex=True)
    for (panel,), errors, name, colour in zip(
        axes, (racing, fixed), ("whoever comes first", "fixed order"), (RED, BLUE), strict=True
    ):
        results = len(errors.unique())
        edges = torch.linspace(racing.min(), racing.max(), 61).tolist()
        panel.hist(errors.numpy(), bins=edges, color=colour)
        panel.set(title=f"{name}: {results} result" + "s" * (results > 1), ylabel="runs")
    axes[1, 0].set_xlabel(f"sum of {COUNT} float32 numbers, minus the exact sum")
    axes[1, 0].ticklabel_format(axis="x", scilimits=(0, 0))
    return figure
