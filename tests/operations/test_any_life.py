"""Long random lives of an adapter: any sequence of operations leaves what it should."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import megedit.operations.adding
from megedit.adapter.adapter import Adapter, load_adapter
from megedit.adapter.change import changing
from megedit.adapter.ledger import reading
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.operations import Outcome, remove, rollback, undo
from tests.conftest import Fitted
from tests.operations.test_operations import collected_without_models, put

Fact = tuple[str, str]  # query and target


class Life(RuleBasedStateMachine):
    """Any sequence of operations, against lists of what is in force and what was removed.

    A consolidation is stood for by what it does to the ledger.
    """

    fitted: Fitted
    root: Path
    made = 0

    @initialize()
    def start(self) -> None:
        Life.made += 1
        self.folder = Path(shutil.copytree(self.fitted.adapter, self.root / str(Life.made)))
        first = {edit.prompt: (edit.id, edit.target) for edit in self.fitted.edits}
        self.states: list[tuple[dict[str, tuple[str, str]], set[str]]] = [({}, set()), (first, set())]
        self.consolidated = 1  # the last revision at which weights were dropped
        self.learned = set(first.items())
        self.served = load_adapter(self.folder)

    def now(self) -> tuple[dict[str, tuple[str, str]], set[str]]:
        active, removed = self.states[-1]
        return dict(active), set(removed)

    @rule(numbers=st.sets(st.integers(0, 9), min_size=1, max_size=3), town=st.sampled_from(["Ma", "Ro"]))
    def add(self, numbers: set[int], town: str) -> None:
        edits = [Edit(f"n{i}", f"Where was child {i} of Zed Yon born?", town) for i in sorted(numbers)]
        outcome = put(self.folder, *edits)
        active, removed = self.now()
        for edit in edits:
            if active.get(edit.prompt, ("", ""))[1] != town:
                active[edit.prompt] = (edit.id, town)
                removed.discard(edit.prompt)
        if (active, removed) == self.states[-1]:
            assert not outcome.changes
        else:
            self.states.append((active, removed))

    @precondition(lambda self: len(self.states[-1][0]) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        active, removed = self.now()
        query = data.draw(st.sampled_from(sorted(active)))
        remove(self.folder, [active.pop(query)[0]])
        self.states.append((active, removed | {query}))

    @rule()
    def undo(self) -> None:
        with reading(self.folder) as ledger:
            last = ledger.operations()[-1].kind
        if last in ("fit", "consolidate"):
            with pytest.raises(MegError):
                undo(self.folder)
        else:
            self.back_to(len(self.states) - 2, lambda: undo(self.folder))

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        revision = data.draw(st.integers(1, len(self.states) - 1))
        if revision < len(self.states) - 1:
            self.back_to(revision, lambda: rollback(self.folder, revision))

    def back_to(self, revision: int, call: Callable[[], Outcome]) -> None:
        active, removed = self.states[revision]
        now, gone = self.states[-1]
        at_drop = self.states[self.consolidated][0]
        if revision < self.consolidated and any(
            at_drop.get(query) != fact and now.get(query) != fact for query, fact in active.items()
        ):
            try:
                call()
            except MegError:  # the weights were dropped; or the same fact was added again since, as another edit
                return
        else:
            call()
        leaving = {query for query, fact in now.items() if active.get(query) != fact and (query, fact) in self.learned}
        with reading(self.folder) as ledger:
            changed = ledger.revision == len(self.states)
            learned_and_gone = {r.edit.prompt for r in ledger.records(status="removed")}
        assert learned_and_gone - removed <= leaving | gone
        if changed:
            self.states.append((dict(active), removed | learned_and_gone))

    @rule()
    def consolidate(self) -> None:
        with changing(self.folder, "consolidate") as change:
            change.set_generated([r.number for r in change.records(status="active")], True)
            change.set_generated([r.number for r in change.records(status="removed")], False)
            change.drop_weights()
        self.states.append(self.now())
        self.consolidated = len(self.states) - 1
        self.learned = set(self.states[-1][0].items())

    @invariant()
    def the_adapter_is_as_expected(self) -> None:
        active, removed = self.states[-1]
        adapter = load_adapter(self.folder)
        assert adapter.revision == len(self.states) - 1
        assert {edit.prompt: (edit.id, edit.target) for edit in adapter.active_edits} == active
        gone = {record.edit.prompt for record in adapter.records if record.status == "removed"}
        assert gone == removed and not removed & active.keys()
        assert len({record.edit.id for record in adapter.records}) == len(adapter.records)
        queries = [*active, *removed]
        routes = adapter.router.route(queries)
        assert all(routing.fires for routing in routes[: len(active)])
        assert not any(routing.fires for routing in routes[len(active) :])
        assert len(adapter.collected) == sum(not record.generated for record in adapter.active)
        self.served = load_adapter(self.folder, known=self.served)
        assert_same(self.served, adapter)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def assert_same(one: Adapter, other: Adapter) -> None:
    """Two adapters have the same edits."""
    first, second = one.enrolment, other.enrolment
    assert one.revision == other.revision
    assert first.records == second.records and first.edits == second.edits
    assert first.owners.tolist() == second.owners.tolist()
    assert torch.equal(first.vectors.unpack(), second.vectors.unpack())
    assert first.collected.keys() == second.collected.keys()
    assert all(torch.equal(first.collected[number], second.collected[number]) for number in first.collected)


def test_any_life(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", "megedit")
    monkeypatch.setattr(megedit.operations.adding, "_collected", collected_without_models("active"))
    Life.fitted, Life.root = fitted, tmp_path
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    checked = settings(max_examples=15, stateful_step_count=15, deadline=None, derandomize=True, database=None,
                       suppress_health_check=health)  # fmt: skip
    run_state_machine_as_test(Life, settings=checked)
