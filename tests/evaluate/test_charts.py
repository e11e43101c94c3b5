"""The figures of the report: coordinates worked out by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from megedit.evaluate.report.charts import (
    Axis,
    Curve,
    bar_chart,
    histogram,
    line_chart,
    roc_chart,
    scaling_chart,
    svg_file,
)


def test_axis() -> None:
    linear = Axis(0, 100, 10, 20, ())
    assert [linear.at(value) for value in (-5, 0, 50, 100, 105)] == [10, 10, 15, 20, 20]
    log = Axis(0.01, 1, 100, 0, (), log=True)
    assert [log.at(value) for value in (0, 0.01, 0.1, 1)] == [100, 100, 50, 0]


def test_bars_reach_their_values() -> None:
    chart = bar_chart([("AG & TF", [{"value": 50.0, "low": 25.0, "high": 100.0}, None])], "what <it> is")
    assert 'aria-label="what &lt;it&gt; is"' in chart and "AG &amp; TF" in chart
    assert '<rect x="8.0" y="19.0" width="193.0" height="12.0" class="bar s0"></rect>' in chart  # 8 to 394 is 100
    assert '<line x1="104.5" y1="25.0" x2="394.0" y2="25.0" class="whisker"></line>' in chart
    assert chart.count("<rect") == 1


def test_roc_goes_through_its_corners() -> None:
    """One decade below the smallest rate above 0, and 1 % at most, is the left end: 48 stands for 0, 410 for 1."""
    chart = roc_chart([Curve([(0.0, 0.0), (1.0, 1.0), (0.0, 0.5), (0.1, 0.5)], (0.1, 0.5))], "")
    assert '<polyline points="48.0,246.0 48.0,128.0 229.0,128.0 410.0,10.0" class="curve s0">' in chart
    assert '<circle cx="229.0" cy="128.0"' in chart


def test_histogram_shows_shares_of_each_class() -> None:
    """Entropies 0 and 1 are the two ends of the axis; 0 is counted as 1e-6."""
    chart = histogram([[0.0, 0.0, 1.0, 1.0], [1.0]], "entropy", "")
    heights = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)" class="area (s\d)"', chart)
    assert heights == [("128.0", "118.0", "s0"), ("128.0", "118.0", "s0"), ("10.0", "236.0", "s1")]
    assert "10⁻⁶" in chart


def test_scaling_of_one_point_less() -> None:
    chart = scaling_chart([None, (10.0, {"value": 50.0, "low": 50.0, "high": 50.0})], False, "")
    assert 'class="dot s1"' in chart and "polyline" not in chart


def test_lines_by_layer() -> None:
    """Layers 2 to 4 are spread over 48 to 410, percentages over 246 to 10; layer 3 is marked."""
    chart = line_chart({"edits": [(4, 50.0), (2, 100.0)], "<other>": [(3, 0.0)]}, "layer", "%", "", marked=3)
    assert '<polyline points="48.0,10.0 410.0,128.0" class="curve s0">' in chart
    assert '<line x1="229.0" y1="246.0" x2="229.0" y2="10.0" class="mark"></line>' in chart
    assert [text for text in ("2", "3", "4") if f">{text}</text>" not in chart] == []
    assert ">edits</text>" in chart and ">&lt;other&gt;</text>" in chart
    assert line_chart({"one": [(7, 50.0)]}, "layer", "%", "").count("<circle") == 1


def test_a_figure_as_a_file() -> None:
    """It is XML that needs no style sheet beside it."""
    text = svg_file(line_chart({"edits": [(0, 1.0), (1, 2.0)]}, "layer", "%", "by <layer>"))
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.attrib["aria-label"] == "by <layer>"
    assert "var(" not in text and ".curve.s0 { stroke: #2f81f7; }" in text
