"""Pairs per second against the dimension, one panel for each family of cases, drawn from the saved results.

    python -m bench.plot

draws bench/results/dims.svg anew; `python -m bench --plot --save` measures first.
"""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.cases import CASES, FAMILIES, PLOTTED
from bench.peers import OURS
from bench.report import LABELS, PICTURE, circumstances, newest

Records = Mapping[str, Mapping[str, Any]]
# The palette of Okabe and Ito, which the colour-blind can tell apart; markers for print without colours.
STYLES = {
    "tritonkeops": ("#d55e00", "o"),
    "pykeops": ("#0072b2", "s"),
    "torch": ("#000000", "^"),
    "sdpa": ("#cc79a7", "D"),
    "faiss": ("#009e73", "v"),
    "sklearn": ("#e69f00", "P"),
}
# Text stays text, which is small; and the same results give the same file: no random names in it, and no date.
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9, "axes.titlesize": 9, "xtick.labelsize": 7}


def draw() -> None:
    records = newest(PLOTTED)
    if not records:
        sys.exit("nothing to draw: `python -m bench --plot --save` measures it")
    with matplotlib.rc_context(SETTINGS):
        figure(records).savefig(PICTURE, metadata={"Date": None})


def figure(records: Records) -> Figure:
    drawing = Figure(figsize=(10, 6), layout="constrained", facecolor="white")
    *panels, key = drawing.subplots(2, 3, sharey=True).flat
    for axes, (title, names) in zip(panels, FAMILIES.items(), strict=True):
        panel(axes, title, [name for name in names if name in records], records)
    lines = {line.get_label(): line for axes in panels for line in axes.lines}
    key.set_axis_off()
    key.legend(handles=[lines[label] for label in LABELS.values() if label in lines], loc="upper left", frameon=False)
    key.text(0, 0, textwrap.fill(circumstances(records), 52), transform=key.transAxes, fontsize=7, color="#444444")
    return drawing


def panel(axes: Axes, title: str, names: Sequence[str], records: Records) -> None:
    """A line for each peer, ours on top."""
    axes.set(title=title, xlabel="D", xscale="log", yscale="log")
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("G pairs/s")
    for peer, label in LABELS.items():
        measured = {CASES[name].dims["x"]: records[name]["figures"].get(peer) for name in names}
        points = {dim: figure for dim, figure in measured.items() if figure is not None}
        if points:
            colour, marker = STYLES[peer]
            emphasis = {"linewidth": 2.5, "zorder": 3} if peer == OURS else {"linewidth": 1.2}
            style = {"color": colour, "marker": marker, "markersize": 4, **emphasis}
            axes.plot(list(points), list(points.values()), label=label, **style)
    dims = [CASES[name].dims["x"] for name in names]
    axes.set_xticks(dims, list(map(str, dims)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    draw()
