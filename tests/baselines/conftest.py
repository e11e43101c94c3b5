"""The tiny base model that every method edits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megedit.baselines.bench import digest
from megedit.baselines.method import Base
from tests.conftest import Fitted


@pytest.fixture(scope="session")
def shared_base(fitted: Fitted) -> Base:
    return Base.load(str(fitted.base))


@pytest.fixture
def tiny(shared_base: Base) -> Iterator[Base]:
    """The base model, bit for bit as it was when a test is done with it."""
    before = digest(shared_base)
    yield shared_base
    assert digest(shared_base) == before
    assert not any(parameter.requires_grad for parameter in shared_base.model.parameters())
