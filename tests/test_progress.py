"""What stages cost, also over interruptions."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from megedit.progress import Stages


def stages() -> Stages:
    return Stages(Console(quiet=True))


def test_costs_are_kept_over_an_interruption(tmp_path: Path) -> None:
    path, first = tmp_path / "costs.json", stages()
    with first.stage("Loading"):
        pass
    first.keep_costs(path)
    with first.stage("Done"):
        pass
    with pytest.raises(KeyboardInterrupt), first.stage("Cut off"):
        raise KeyboardInterrupt
    path.write_text(json.dumps({name: {**cost, "seconds": 10.0} for name, cost in first.costs.items()}), "utf-8")
    second = stages()
    with second.stage("Loading"):
        pass
    second.keep_costs(path)
    with second.stage("Cut off"):
        pass
    assert list(second.costs) == ["Loading", "Done", "Cut off"]
    assert second.costs["Done"]["seconds"] == 10
    assert 10 <= second.costs["Loading"]["seconds"] < 11 and 10 <= second.costs["Cut off"]["seconds"] < 11
    assert json.loads(path.read_text("utf-8")) == second.costs


def test_costs_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    cut_off = stages()
    cut_off.keep_costs(tmp_path / "nothing" / "costs.json")
    with cut_off.stage("Done"):
        pass
    assert "Done" in cut_off.costs
