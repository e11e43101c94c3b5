"""The result files that tables and figures are made from, and what is said of where each was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "(not measured yet)"

# title -> name of the file
SETS = {"CounterFact": "edit_10000_counterfact_cuda", "ZsRE-style": "edit_10000_zsre_style_cuda"}
TWO_CORES = {"CounterFact, two cores": "edit_10000_counterfact", "ZsRE-style, two cores": "edit_10000_zsre_style"}
DEVICES = {
    "CounterFact, two cores": "edit_10000_counterfact",
    "CounterFact, two cores, float32": "edit_10000_counterfact_float32",
    "CounterFact, GPU": "edit_10000_counterfact_cuda",
}
UNSEEN = {
    "CounterFact, tuned on questions": "edit_10000_counterfact_questions",
    "CounterFact, tuned on questions, no own words": "edit_10000_counterfact_questions_no_own_words",
    "ZsRE, tuned on statements": "edit_10000_zsre_statements",
    "ZsRE with contradictions, tuned on statements": "edit_10000_zsre_all_statements",
}
RAW = {"CounterFact, no template": "edit_1000_counterfact_raw"}
CURVE = {
    f"{title}, {count:,}": f"edit_{count}_{name}"
    for title, name, counts in (
        ("CounterFact", "counterfact", (1024, 4096, 10000, 16000)),
        ("CounterFact, float32", "counterfact_float32", (1024, 2048, 4096, 10000)),
        ("CounterFact, GPU", "counterfact_cuda", (10000,)),
        ("CounterFact, no own words", "counterfact_no_own_words", (16000,)),
        ("ZsRE-style", "zsre_style", (1024, 10000, 20000)),
        ("ZsRE-style, GPU", "zsre_style_cuda", (10000, 20000)),
    )
    for count in counts
}
SHAPES = {
    "SmolLM2-135M": "shapes_smollm2_135m",
    "Phi-2": "shapes_phi_2",
    "GPT-J": "shapes_gpt_j",
    "Llama-3-8B": "shapes_llama_3_8b",
}
GEMMA = "_gemma_3_270m_q4_k_m"
FAMILIES = {"SmolLM2-135M": "edit_500_counterfact", "Gemma-3-270M": f"edit_500_counterfact{GEMMA}"}
ANCHORS = {"CounterFact, 10,000": "anchor", "ZsRE-style, 20,000": "anchor_zsre_style"}
PROBES = {"SmolLM2-135M": "probe", "Gemma-3-270M": f"probe{GEMMA}"}
HARDER = {**SETS, **TWO_CORES, **UNSEEN, **RAW, **FAMILIES}  # all sets that were asked further questions

Result = Mapping[str, Any]  # a file that common.write_result wrote
Results = Mapping[str, Result]  # by the name of the file


def measured(results: Results, names: Mapping[str, str]) -> str:
    """The line below a table: for each result file the machine, the date and the commit."""
    lines = []
    for title, name in names.items():
        if name not in results:
            lines.append(f"{title}: {MISSING}")
            continue
        machine, commit = results[name]["machine"], results[name]["commit"]
        changed = " with uncommitted changes" if commit.endswith("changes") else ""
        fitted = results[name]["results"].get("fit_commit", commit)
        fit = f", fitted on `{fitted[:10]}`" if fitted != commit else ""
        gpu = f"; {machine['gpu']}, {machine['gpu_memory_gib']:.1f} GiB" if "gpu" in machine else ""
        lines.append(
            f"{title}: {machine['processor']}, {machine['threads']} of {machine['cores']} cores, "
            f"{machine['memory_gib']:.1f} GiB{gpu}; {results[name]['date']}; commit `{commit[:10]}`{changed}{fit}."
        )
    return "<sub>" + "<br>\n".join(lines) + "</sub>"


def present(results: Results, names: Mapping[str, str]) -> dict[str, Any]:
    """The `results` of those files that are there, by title."""
    return {title: results[name]["results"] for title, name in names.items() if name in results}
