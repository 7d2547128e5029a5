"""A picture of a dashboard: the open rows, drawn from what Prometheus gave for their queries, as Grafana would lay them out."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

_COLORS = {"green": "#2f7d4f", "orange": "#c77700", "red": "#b3261e"}
_UNIT = 0.46  # inches of a unit of the dashboard's grid


def draw(dashboard: dict[str, Any], shown: dict[str, list[Any]], target: Path) -> None:
    """Write the picture as PNG."""
    open_panels = [panel for panel in dashboard["panels"] if not panel.get("collapsed")]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in open_panels)
    figure = plt.figure(figsize=(24 * _UNIT * 1.35, height * _UNIT), dpi=110, facecolor="#f4f5f7")
    for panel in open_panels:
        place = panel["gridPos"]
        box = (place["x"] / 24, 1 - (place["y"] + place["h"]) / height, place["w"] / 24, place["h"] / height)
        if panel["type"] == "row":
            figure.text(box[0] + 0.006, box[1] + box[3] / 2, panel["title"], weight="bold", va="center", size=11)
        elif panel["type"] == "stat":
            _number(figure, box, panel, shown[panel["title"]])
        else:
            _lines(figure, box, panel, shown[panel["title"]])
    figure.savefig(target)
    plt.close(figure)


def _number(figure: Any, box: tuple[float, ...], panel: dict[str, Any], series: list[Any]) -> None:
    value = float(series[0]["values"][-1][1]) if series else math.nan
    color = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    axes = figure.add_axes((box[0] + 0.004, box[1] + 0.004, box[2] - 0.008, box[3] - 0.008), facecolor=_COLORS[color])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.5,
        0.42,
        _readable(value, panel["fieldConfig"]["defaults"]["unit"]),
        ha="center",
        va="center",
        color="white",
        size=20,
        weight="bold",
    )
    axes.text(0.03, 0.9, panel["title"], va="center", color="white", size=9)


def _lines(figure: Any, box: tuple[float, ...], panel: dict[str, Any], series: list[Any]) -> None:
    axes = figure.add_axes((box[0] + 0.032, box[1] + 0.035, box[2] - 0.042, box[3] - 0.06), facecolor="white")
    axes.set_title(panel["title"], size=9, loc="left", weight="bold")
    start = min((float(values[0][0]) for one in series if (values := one["values"])), default=0.0)
    for one in series:
        points = [(float(at) - start, float(value)) for at, value in one["values"] if value != "NaN"]
        if points:
            label = re.sub(r"\{\{(\w+)\}\}", lambda match, one=one: one["metric"].get(match[1], ""), one["legend"])
            axes.plot(*zip(*points, strict=True), linewidth=1, label=label)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)  # room for the legend
    axes.tick_params(labelsize=7)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.yaxis.set_major_formatter(lambda value, _: _readable(value, unit))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=6.5, loc="upper left", ncols=3, frameon=False)


def _readable(value: float, unit: str) -> str:
    if math.isnan(value):
        return "none"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    if unit == "ops":
        return f"{value:,.4g}/s"
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
