"""
Draws the ratios of ``RESULTS.md``; runs in an environment of its own, which has matplotlib.

    python plot.py RESULTS.svg < bars.json

``bars.json`` is a list of objects: ``title``, ``ratio``, ``target`` and ``holds``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

HOLDS, MISSES, TARGET, TEXT = "#2a7f62", "#c8553d", "#222222", "#333333"
LEFT = 0.005
"""Where the axis begins."""


def draw(bars: list[dict[str, float | str | bool]], place: Path) -> None:
    # Texts stay texts, and nothing in the file depends on when or where it was drawn.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 8})
    figure, axes = plt.subplots(figsize=(8, 0.24 * len(bars) + 1.1))
    rows = range(len(bars))
    axes.barh(
        rows,
        [max(float(bar["ratio"]), LEFT) for bar in bars],
        left=0,
        height=0.62,
        color=[HOLDS if bar["holds"] else MISSES for bar in bars],
    )
    for row, bar in zip(rows, bars, strict=True):
        axes.plot([bar["target"]] * 2, [row - 0.4, row + 0.4], color=TARGET, linewidth=1.4)
        axes.annotate(
            f"{bar['ratio']:.2g}",
            (max(float(bar["ratio"]), LEFT), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=TEXT,
        )
    axes.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(LEFT, max(20.0, 2 * max(float(bar["ratio"]) for bar in bars)))
    axes.set_yticks(list(rows), [str(bar["title"]) for bar in bars])
    axes.invert_yaxis()
    axes.set_xlabel("ratio to guard-agent 3.2.4; the dark line is the target")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.tight_layout()
    figure.savefig(place, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
