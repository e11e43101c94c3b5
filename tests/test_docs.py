"""The documents: measured numbers are those of the result files, and links lead somewhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render
from benchmarks.figures import FIGURES
from benchmarks.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def test_every_table_and_figure_is_up_to_date() -> None:
    assert render.outdated() == [], "run: python -m benchmarks.render"


def anchors(document: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub(lambda code: code[0].strip("`\n"), document.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", render.documents(ROOT), ids=lambda path: path.name)
def test_relative_links_lead_to_files(document: Path) -> None:
    for found in LINK.findall(CODE.sub("", document.read_text("utf-8"))):
        address, _, anchor = (found[0] or found[1]).partition("#")
        if "://" in address:
            continue
        target = document.parent / address if address else document
        assert target.exists(), f"{document.name} links to {address}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {address}#{anchor}"


# ---------------------------------------------------------------------------------------------------
# The script itself, on results made up here

METRICS = {f"{kind}_{measure}": 50.0 for kind in ("reliability", "generality", "locality") for measure in ("ag", "tf")}
ROW = {"reliability": 99.0, "clean": 98.25, "noisy": None, "seconds_per_edit": 0.125, "mean_steps": 12.0}
RECIPE = {
    **ROW,
    "collected": 48,
    "collection_seconds_per_edit": 0.25,
    "collection_reliability": 100.0,
    "parameters_millions": 16.0,
    "training_seconds": 60.0,
    "training_steps": 40,
    "sample_steps": 2,
    "sampling_seconds": 0.5,
}
RESULTS: dict[str, dict[str, Any]] = {
    "edit_10000_counterfact": {
        "edited": {**METRICS, "reliability_ag": 100.0, "score": 87.6},
        "unedited": {**METRICS, "generality_ag": None, "score": None},
        "noisy_rephrases": {"generality_ag": 41.5, "generality_tf": 61.5},
        "edits": 10000,
        "counts": {"reliability": 2500, "generality": 2500, "locality": 2500},
        "failed": ["7"],
        "generated_uncertain": ["8", "9", "10"],
        "fit_seconds": 90.0,
        "fit_peak_memory_mb": 3072.0,
        "collection_seconds_per_edit": 0.25,
        "adapter_mb": 55.5,
        "stages": {"Collecting neurons": {"seconds": 250.0, "peak_memory_mb": 2048.0}},
        "calibration": {
            "rule": "combined",
            "decisions": {"combined": {"auc": 0.99876, "true_positive_rate": 0.97, "false_positive_rate": 0.02}},
        },
        "calibration_curve": [[2.0, 0.0, 0.5], [1.0, 0.02, 0.97]],
    },
    "shapes_phi_2": {
        "weight_size": 5121,
        "parameters_billions": 2.78,
        "rows": [{"batch_size": 512, "edits_per_second": 61.23, "seconds_per_edit": 0.0163, "peak_memory_gib": 12.34}],
        "generators": [{"name": "paper", "seconds_per_step": 0.0421, "peak_memory_gib": 9.87}],
    },
    "overhead": {
        "base_seconds": 1.0,
        "unfamiliar_seconds": 1.02,
        "unfamiliar_percent": 2.0,
        "familiar_base_seconds": 1.0,
        "familiar_seconds": 1.1,
        "familiar_percent": 10.0,
        "routing_seconds": 0.015,
        "generating_seconds": 0.08,
        "remembered_seconds": 0.0001,
        "batch_size": 16,
        "new_tokens": 20,
        "runs": 5,
    },
    "positions": {"rows": [{**ROW, "positions": "answer", "layer": 20}]},
    "probe": {
        "rows": [{"layer": 3, "reliability": 99.0, "generality": 88.5, "norm": 12.3, "seconds": 0.1234}],
        "recommended": 3,
    },
    "collection": {"rows": [{**ROW, "layer": 20, "margin": 4.0, "key_lr": 0.015, "value_lr": 1.0, "ending": "(none)"}]},
    "recipe": {"rows": [{**RECIPE, "name": "paper", "sampling_seconds": 15.0}, {**RECIPE, "name": "ours"}]},
    "generators": {"rows": [{**ROW, "name": "default", "steps": 600, "seconds": 70.0, "parameters_millions": 16.0}]},
}
RESULTS["recipe_cuda"] = RESULTS["recipe"]
RESULTS["edit_10000_counterfact_cuda"] = {**RESULTS["edit_10000_counterfact"], "fit_peak_gpu_memory_mb": 5120.0}
RESULTS["edit_16000_counterfact"] = {**RESULTS["edit_10000_counterfact"], "edits": 16000}  # a curve of two points
MACHINE = {"processor": "Some CPU", "cores": 4, "threads": 2, "memory_gib": 8.0}
GPU = {"gpu": "Some GPU", "gpu_memory_gib": 79.2}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose README has every block and whose result files are still to come."""
    names = [*TABLES, *(f"{name}-figure" for name in FIGURES)]
    blocks = "\n".join(f"## {name}\n<!-- results:{name} -->\nold\n<!-- end -->\nkept" for name in names)
    (tmp_path / "README.md").write_text(blocks)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("<!-- results:score-figure --><!-- end -->".replace("><", ">\n<"))
    return tmp_path


def add_results(project: Path) -> None:
    folder = project / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for name, results in RESULTS.items():
        document = {
            "date": "2025-01-02 03:04 UTC",
            "machine": MACHINE | (GPU if "cuda" in name else {}),
            "commit": "0123456789abcdef",
            "results": results,
        }
        (folder / f"{name}.json").write_text(json.dumps(document))


def test_without_results_every_block_says_so(project: Path) -> None:
    assert render.write(project) == [project / "README.md", project / "docs" / "page.md"]
    text = (project / "README.md").read_text()
    count = len(TABLES) + len(FIGURES)
    assert (text.count("(not measured yet)"), text.count("kept"), text.count("old")) == (count, count, 0)
    assert render.outdated(project) == []


def test_results_are_rendered_and_checked(project: Path) -> None:
    render.write(project)
    add_results(project)
    figures = {project / "docs" / "images" / f"{name}.svg" for name in FIGURES}
    assert set(render.outdated(project)) == {project / "README.md", project / "docs" / "page.md", *figures}
    render.write(project)
    assert render.outdated(project) == []
    text = (project / "README.md").read_text()
    assert "CounterFact, GPU: Some CPU, 2 of 4 cores, 8.0 GiB; Some GPU, 79.2 GiB; " in text
    for cell in (
        "| Reliability, AG | 50.0 | 100.0 |",
        "| **Score** | - | 87.6 |",
        "| Edits (failed) |  | 10,000 (1) |",
        "| Fit, minutes |  | 1.5 |",
        "| CounterFact: combined (used) | 0.9988 | 97.0 | 2.0 |",
        "| CounterFact: rephrase behind a noise sentence | Generality | 50.0 | 50.0 | 41.5 | 61.5 |",
        "| answer | 99.0 | 98.2 | - | 0.125 |",
        "| training, seconds a step | 1.50 | 1.50 | 1 |",
        "| sampling, seconds for 16 queries | 15.0000 | 0.5000 | 30 |",
        "| default | 16.0 | 600 | 70 | 99.0 | 98.2 | - |",
        "| Peak GPU memory, GiB |  | - |  | 5.0 |",
        "| Phi-2, 2.78 billion | 512 | 61.2 | 0.0163 | 12.3 |",
        "| Phi-2, paper | 5,121 | 42.1 | 9.9 |",
        "CounterFact, two cores: Some CPU, 2 of 4 cores, 8.0 GiB; 2025-01-02 03:04 UTC; commit `0123456789`.",
        "ZsRE-style: (not measured yet)",
    ):
        assert cell in text
    assert "](docs/images/score.svg)" in text
    assert "](images/score.svg)" in (project / "docs" / "page.md").read_text()


def test_another_number_makes_table_and_figure_outdated(project: Path) -> None:
    add_results(project)
    render.write(project)
    for path in (project / "benchmarks" / "results").glob("edit_*.json"):
        path.write_text(path.read_text().replace("87.6", "87.7"))
    figures = [project / "docs" / "images" / f"{name}.svg" for name in ("score", "curve")]
    assert render.outdated(project) == [project / "README.md", *figures]


def test_a_figure_without_results_is_removed(project: Path) -> None:
    add_results(project)
    render.write(project)
    for path in (project / "benchmarks" / "results").glob("*.json"):
        path.unlink()
    render.write(project)
    assert render.outdated(project) == []
    assert not list((project / "docs" / "images").iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:nothing -->\n<!-- end -->", "no table or figure is called 'nothing'"),
        ("<!-- results:headline -->\n\n", "needs an end comment"),
        ("<!-- results:headline -->\n<!-- results:stages -->\n<!-- end -->", "needs an end comment"),
    ],
)
def test_comments_that_are_wrong(project: Path, text: str, message: str) -> None:
    (project / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        render.outdated(project)
