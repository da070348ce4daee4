"""Two training runs of the same length: the shipped network's last, and the NAFNet beside it."""

import json

from card import BLUE, ORANGE, RESULTS, card


def draw():
    """Loss and gain over minutes; measurements are spread over a run as its steps are."""
    figure, ((top,), (bottom,)) = card(2, 1, 4.6, sharex=True)
    runs = json.loads((RESULTS / "training_xyscannet_tiny.json").read_text(encoding="utf-8"))["runs"]
    for run, colour, dash in zip(runs, (BLUE, ORANGE), ("-", "--"), strict=True):
        minutes = run["seconds"] / 60 / run["steps"]
        for panel, points, key, mark in ((top, run["points"], "loss", ""), (bottom, run["measured"], "gain_db", "o")):
            at = [point["step"] * minutes for point in points]
            label = f"{run['run']}, from {run['start']}"
            panel.plot(at, [point[key] for point in points], dash + mark, color=colour, lw=1.4, ms=4, label=label)
    top.set(ylabel="loss", ylim=(0.06, 0.11), title="each point a mean of 200 steps")
    top.legend(frameon=False)
    bottom.set(xlabel="minutes", ylabel="gain in dB", ylim=(0, 5.5), title="the quality check along the way")
    return figure
