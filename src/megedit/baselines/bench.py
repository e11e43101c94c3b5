"""Editing methods side by side: the same edits, questions and protocols for all of them, on one base model.

Each method edits in a process of its own, so that its memory can be told and one that fails takes none of the others
with it. A row is kept as soon as it is there; the same bench started again makes only what is missing or has failed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from megedit.baselines import method_named
from megedit.baselines.method import Base, EditedSystem
from megedit.edits import Edit, EditSet, load_edits, normalise_query
from megedit.edits.contrast import ContrastFact, read_contrast
from megedit.errors import MegError
from megedit.evaluate.api import contrast, evaluate
from megedit.evaluate.protocols import EvaluationSettings
from megedit.evaluate.systems import Answer, FunctionSystem, System
from megedit.runtime.files import sha256_of, write_json
from megedit.runtime.progress import Stages, peak_memory
from megedit.runtime.provenance import machine, versions

logger = logging.getLogger("megedit")

FORMAT = 1
UNEDITED = "unedited"  # the base model, as a row of its own
SPEED_QUERIES, SPEED_BATCH, SPEED_TOKENS = 64, 16, 20  # by which answers a second are measured


@dataclass(frozen=True)
class Bench:
    """The methods, edits and questions of one comparison.

    base: as `load_base` takes it. data: a file or public set of edits. sizes: numbers of edits, each a column of its
    own. asked: edits that are asked about, drawn by the seed; all of them where there are fewer. contrast: a file of
    facts with contrast texts, which are edited beside the others; none where it is not given. settings: of methods, by
    their names, where they are not the defaults. dtype: of the base model; None for the fast one of the device.
    """

    base: str
    data: str
    sizes: tuple[int, ...] = (1000,)
    methods: tuple[str, ...] = ("meg",)
    asked: int = 1000
    contrast: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Job:
    """One method and one number of edits."""

    bench: Bench
    method: str
    edits: int

    @property
    def key(self) -> str:
        """A digest of all that decides the row."""
        bench = self.bench
        files = [sha256_of(Path(name)) for name in (bench.data, bench.contrast) if name and Path(name).is_file()]
        own = repr(bench.settings.get(self.method))
        parts = [FORMAT, self.method, self.edits, bench.base, bench.data, bench.asked, bench.contrast, bench.seed]
        parts += [str(bench.dtype), bench.device, own, files, versions()["megedit"]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def run(bench: Bench, out: Path, console: Console) -> dict[str, Any]:
    """Make all rows, and write `bench.json` into the folder `out`. Raises MegError for input that cannot be used.

    A method that fails is a row with its `error`.
    """
    for name in bench.methods:
        method_named(name)
    for edits in bench.sizes:
        _questions(bench, edits)
    jobs = [Job(bench, name, edits) for edits in bench.sizes for name in (UNEDITED, *bench.methods)]
    rows = [_row(job, out / "rows", console) for job in jobs]
    document = {
        "format": FORMAT,
        "bench": {**asdict(replace(bench, settings={})), "dtype": str(bench.dtype)},
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    write_json(out / "bench.json", document)
    return document


def _row(job: Job, folder: Path, console: Console) -> dict[str, Any]:
    """The row of a job: as it was kept, or made now."""
    path = folder / f"{job.method}-{job.edits}.json"
    if path.is_file() and (row := json.loads(path.read_text("utf-8")))["key"] == job.key and "error" not in row:
        return dict(row)
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as pool:
            found = pool.submit(_measured, job, str(folder), console.is_terminal, os.getpid()).result()
    except MegError as error:
        found = {"error": str(error)}
    except BrokenExecutor:
        found = {"error": "its process was killed, most likely since there was no memory left"}
    except Exception as error:  # of a method: whatever it is, the others go on
        found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    row = {"key": job.key, "method": job.method, "edits": job.edits, **found}
    write_json(path, row)
    if "error" in row:
        logger.warning("%s with %d edits failed: %s", job.method, job.edits, row["error"])
    return row


def _measured(job: Job, folder: str, show: bool, parent: int) -> dict[str, Any]:
    """Measure in a process of its own, which ends when the one that began it has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, daemon=True).start()
    return measure(job, folder, show)


def measure(job: Job, folder: str, show: bool) -> dict[str, Any]:
    """Edit by one method and measure it.

    folder: of the rows, where the unedited model's answers are kept for all methods. show: draw progress bars.
    """
    bench, stages = job.bench, Stages(Console(stderr=True, quiet=not show))
    base = Base.load(bench.base, bench.dtype, bench.device)
    edits, asked, facts = _questions(bench, job.edits)
    memory = Path(folder) / f"answers-{job.edits}.json"
    if job.method == UNEDITED:
        recording = Recording(base)
        found = _scores(recording, recording, asked, facts, bench.seed, stages)
        recording.save(memory)
        return found | {"answers_per_second": speed(recording, asked)}
    kind = method_named(job.method)
    method = kind(base, bench.settings.get(job.method), bench.seed)
    weights = digest(base)
    started = time.perf_counter()
    with stages.stage(f"{job.method}: {len(edits)} edits", len(edits)) as advance:
        method.edit(edits, advance)
    seconds = time.perf_counter() - started
    peaks = peak_memory()
    found = _scores(method.system(), Recorded.load(memory), asked, facts, bench.seed, stages)
    found |= {
        "source": kind.source,
        "settings": asdict(method.settings),
        "seconds_per_edit": seconds / len(edits),
        "stored_bytes": method.stored_bytes,
        "answers_per_second": speed(method.system(), asked),
        **peaks,
    }
    method.restore()
    return found | {"restored": digest(base) == weights}


def _questions(bench: Bench, count: int) -> tuple[list[Edit], EditSet, list[ContrastFact]]:
    """The edits to make, those to ask about, and the facts with contrast texts, which are edited too."""
    chosen = load_edits(Path(bench.data), limit=count, on_conflict="first")
    if len(chosen) < count:
        raise MegError(f"{bench.data} has {len(chosen)} edits that can be used; {count} were asked for.")
    facts = read_contrast(bench.contrast) if bench.contrast else []
    own = {normalise_query(edit.prompt) for edit in chosen}
    further = [
        Edit(id=f"contrast-{i}", prompt=fact.prompt, target=fact.target, subject=fact.subject)
        for i, fact in enumerate(facts)
        if normalise_query(fact.prompt) not in own
    ]
    names = random.Random(bench.seed).sample([edit.id for edit in chosen], min(bench.asked, count))
    return [*chosen, *further], chosen.only(names, "not asked"), facts


def _scores(
    system: System, unedited: System | None, asked: EditSet, facts: Sequence[ContrastFact], seed: int, stages: Stages
) -> dict[str, Any]:
    """The six metrics and the Score by the protocol `paper`, and the two shares of `contrast`."""
    settings = EvaluationSettings(rephrases=1, seed=seed)
    with stages.stage(f"{system.name}: asking", None) as advance:
        result = evaluate(system, asked, "paper", settings, unedited=unedited, resume=False, progress=advance)
        metrics = {metric.name: asdict(metric.edited) if metric.edited else None for metric in result.metrics}
        found: dict[str, Any] = {"metrics": metrics}
        if facts:
            fired = contrast(system, facts, seed=seed, progress=advance)
            shares = {"recognised": fired.recognised, "false": fired.false}
            found["contrast"] = {name: asdict(share) if share else None for name, share in shares.items()}
    return found


def speed(system: System, asked: EditSet) -> float:
    """Answers a second: the first edits' own questions in batches, 20 tokens at most."""
    queries = [edit.prompt for edit in asked][:SPEED_QUERIES]
    parts = [queries[first : first + SPEED_BATCH] for first in range(0, len(queries), SPEED_BATCH)]
    system.answers(parts[0], [SPEED_TOKENS] * len(parts[0]))  # warm up
    started = time.perf_counter()
    for part in parts:
        system.answers(part, [SPEED_TOKENS] * len(part))
    return len(queries) / (time.perf_counter() - started)


def digest(base: Base) -> str:
    """SHA-256 of all parameters and buffers of a model, bit for bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(base.model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Recording(EditedSystem):
    """The base model, whose greedy answers are kept for the methods that are compared with it."""

    def __init__(self, base: Base) -> None:
        super().__init__(base, UNEDITED)
        self._said: dict[str, Answer] = {}

    def answers(self, queries: Sequence[str], limits: Sequence[int], top_k: int = 1, seed: int = 0) -> list[Answer]:
        said = super().answers(queries, limits, top_k, seed)
        self._said.update(zip(queries, said, strict=True))
        return said

    def save(self, path: Path) -> None:
        """Write the answers, by their queries."""
        write_json(path, {query: asdict(answer) for query, answer in self._said.items()})


class Recorded(FunctionSystem):
    """The unedited model's answers, as a system that is not asked again and knows nothing else."""

    def __init__(self, said: Mapping[str, Answer]) -> None:
        super().__init__(lambda queries: [said[query].text for query in queries], UNEDITED)
        self._said = said

    @classmethod
    def load(cls, path: Path) -> Recorded:
        """Read what `Recording.save` wrote."""
        found = json.loads(path.read_text("utf-8"))
        return cls({query: Answer(of["text"], tuple(of["tokens"]), of["cut"]) for query, of in found.items()})

    def answers(self, queries: Sequence[str], limits: Sequence[int], top_k: int = 1, seed: int = 0) -> list[Answer]:
        return [self._said[query] for query in queries]
