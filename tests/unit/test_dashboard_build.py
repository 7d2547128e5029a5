"""The dashboard as it stands in the repository: made by its builder, and only of metrics that the workers have."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
METRICS = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel["panels"] if panel["type"] == "row" else [panel]


def built() -> dict[str, Any]:
    dashboard: dict[str, Any] = runpy.run_path(str(DEPLOY / "grafana" / "build.py"))["dashboard"]()
    return dashboard


def test_the_file_is_what_the_builder_makes() -> None:
    assert json.loads((DEPLOY / "grafana" / "howdah.json").read_text(encoding="utf-8")) == built(), (
        "python deploy/grafana/build.py"
    )


def test_every_metric_in_it_is_on_the_operators_page() -> None:
    for panel in panels(built()):
        for target in panel["targets"]:
            for name in re.findall(r"howdah_[a-z_]+", target["expr"]):
                assert f"`{SUFFIXES.sub('', name)}`" in METRICS or f"`{name}`" in METRICS, (panel["title"], name)


def test_no_two_panels_of_a_row_lie_over_one_another_and_each_says_what_it_shows() -> None:
    rows = [panel["panels"] for panel in built()["panels"] if panel["type"] == "row" and panel["collapsed"]]
    for row in [[panel for panel in built()["panels"] if panel["type"] != "row"], *rows]:
        taken: set[tuple[int, int]] = set()
        for panel in row:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert place["x"] + place["w"] <= 24
            assert panel["description"], panel["title"]
            taken |= cells
    ids = [panel["id"] for panel in panels(built())]
    assert len(ids) == len(set(ids))


def test_the_first_screen_is_one_screen() -> None:
    """Four open rows: heading, and a line of panels each; a screen of 1080 lines shows some 32 of Grafana's units."""
    open_rows = [panel for panel in built()["panels"] if panel["type"] == "row" and not panel["collapsed"]]
    assert [row["title"] for row in open_rows] == ["Is it working?", "Is it keeping up?", "What fails?", "Why?"]
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in built()["panels"]) <= 32
