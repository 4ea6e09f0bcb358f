"""Draws docs/losses_*.svg, by the losses' own code: python docs/_make/curves.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor

from relgan.losses import get_loss, hinge_cost, linear_cost, log_cost, square_cost

FOLDER = Path(__file__).resolve().parents[1]
COSTS = {"log": log_cost, "square": square_cost, "hinge": hinge_cost, "linear": linear_cost}


def costs() -> None:
    """What the critic pays for a real and for a fake image, by how real each looks."""
    a = torch.linspace(-3, 3, 241)
    figure, axes = pyplot.subplots(1, len(COSTS), figsize=(10, 2.8), sharey=True)
    for panel, (name, cost) in zip(axes, COSTS.items(), strict=True):
        panel.plot(a, cost("paired").f1(a), label="f₁, real")
        panel.plot(a, cost("paired").f2(a), label="f₂, fake")
        if not torch.equal(cost("standard").f2(a), cost("paired").f2(a)):
            panel.plot(a, cost("standard").f2(a), "C1:", label="f₂, standard form")
        panel.set(title=name, xlabel="a", ylim=(-3, 6))
    axes[0].set_ylabel("the critic's cost")
    lines, labels = axes[list(COSTS).index("square")].get_legend_handles_labels()
    figure.legend(lines, labels, frameon=False, loc="upper center", ncols=len(labels), bbox_to_anchor=(0.5, 0.0))
    save(figure, "losses_costs")


def pull() -> None:
    """How hard each loss pulls on a real image, by how much more real than the fake one it looks."""
    gap = torch.linspace(-4, 8, 241)
    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    for name in ("sgan", "rsgan", "wgan"):
        # As the generator catches up, r stays large while f rises to meet it.
        by_real = [_pull_on_real(name, torch.tensor([4.0]), torch.tensor([4.0 - each])) for each in gap.tolist()]
        axes.plot(gap, by_real, label=name)
    axes.set(
        xlabel="r − f, with r = 4: to the right, the fake image catches up and overtakes",
        ylabel="|∂L/∂r|",
        ylim=(-0.05, 1.1),
    )
    axes.invert_xaxis()
    axes.legend(frameon=False)
    save(figure, "losses_pull")


def _pull_on_real(name: str, real: Tensor, fake: Tensor) -> float:
    return float(get_loss(name).pull(real, fake)[0])


def save(figure: Figure, name: str) -> None:
    """Write one drawing, the same bytes each time."""
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    matplotlib.rcParams |= {"svg.hashsalt": "relgan", "axes.spines.top": False, "axes.spines.right": False}
    costs()
    pull()
