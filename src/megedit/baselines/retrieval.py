"""Without an editor, as practitioners do: put the nearest fact in front of the question, or answer from a cache.

`Retrieval` looks up the edit nearest to the question, by our encoder, and tells it to the model in the prompt.
`VerifiedRetrieval` tells it only where our verifier says that the question asks for it. `SemanticCache` answers with
the stored target of the nearest edit where the similarity is high enough, as caches in front of language models do
(GPTCache, Bang 2023), and asks the model otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from megedit.baselines.method import Base, EditedSystem, Method
from megedit.edits import Edit
from megedit.encoder import TextEncoder, shipped_encoder
from megedit.evaluate.metrics import token_agreement
from megedit.evaluate.systems import Answer, System
from megedit.router.curve import threshold_for
from megedit.router.index import EditVectors
from megedit.router.verifier import Verifier, edit_text, load_verifier
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.shipped import VERIFIER, shipped

FACT = "Fact: {prompt} {target}\n{query}"


@dataclass(frozen=True)
class RetrievalSettings:
    """The nearest fact: when it is used, and how it is told."""

    similarity: Annotated[float, "cosine from which the nearest edit is used"] = 0.6
    wording: Annotated[str, "the query with the fact: {prompt}, {target} and {query}"] = FACT


class Retrieval(Method):
    """The nearest fact, told in the prompt."""

    name: ClassVar[str] = "retrieval"
    source: ClassVar[str] = "arXiv 2005.11401, for edits"
    settings_type: ClassVar[type[Any]] = RetrievalSettings
    settings: RetrievalSettings
    _store: Store | None = None

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        self._store = self._stored(edits, shipped_encoder(self.base.device))
        advance(len(edits))

    def _stored(self, edits: Sequence[Edit], encoder: TextEncoder) -> Store:
        return Store(edits, encoder, self.settings.similarity)

    def restore(self) -> None:
        self._store = None

    @property
    def stored_bytes(self) -> int:
        return self._store.bytes if self._store is not None else 0

    def system(self) -> System:
        return _Told(self.base, self.name, self._store, self.settings.wording)


@dataclass(frozen=True)
class VerifiedRetrievalSettings:
    """The nearest fact: when it is used, and how it is told."""

    false_fires: Annotated[float, "share of near misses that may fire, by the verifier's curve"] = 0.05
    wording: Annotated[str, "the query with the fact: {prompt}, {target} and {query}"] = FACT


class VerifiedRetrieval(Retrieval):
    """The nearest fact, told where the verifier says that it is asked for."""

    name: ClassVar[str] = "retrieval-verified"
    settings_type: ClassVar[type[Any]] = VerifiedRetrievalSettings
    settings: VerifiedRetrievalSettings  # type: ignore[assignment]

    def _stored(self, edits: Sequence[Edit], encoder: TextEncoder) -> Store:
        verifier = load_verifier(shipped(VERIFIER), self.base.device)
        return Store(edits, encoder, -1.0, verifier, threshold_for(self.settings.false_fires))


@dataclass(frozen=True)
class SemanticCacheSettings:
    """The least similarity."""

    similarity: Annotated[float, "cosine from which the nearest edit's target is the answer"] = 0.8


class SemanticCache(Retrieval):
    """The answer of the nearest stored question."""

    name: ClassVar[str] = "semantic-cache"
    source: ClassVar[str] = "GPTCache (NLP-OSS 2023)"
    settings_type: ClassVar[type[Any]] = SemanticCacheSettings

    def system(self) -> System:
        return _Cached(self.base, self.name, self._store)


class Store:
    """Edits by the vectors of what asks for them."""

    def __init__(
        self,
        edits: Sequence[Edit],
        encoder: TextEncoder,
        similarity: float,
        verifier: Verifier | None = None,
        threshold: float = 0.0,
    ) -> None:
        """similarity: cosine from which an edit may be used. threshold: of the verifier's logit, where there is one."""
        self._edits, self._encoder, self._least = list(edits), encoder, similarity
        self._verifier, self._threshold = verifier, threshold
        self._vectors = EditVectors.pack(encoder.encode([edit.prompt for edit in edits]))

    @property
    def bytes(self) -> int:
        """Of vectors and texts."""
        texts = sum(len((edit.prompt + edit.target).encode()) for edit in self._edits)
        return self._vectors.codes.numel() + 2 * len(self._edits) + texts

    def found(self, queries: Sequence[str]) -> list[Edit | None]:
        """The edit that is used for each query, if any."""
        similarities, rows = self._nearest(queries)
        near = [
            self._edits[row] if value >= self._least else None for value, row in zip(similarities, rows, strict=True)
        ]
        if self._verifier is None:
            return near
        asked = [i for i, edit in enumerate(near) if edit is not None]
        texts = [[edit_text(near[i].prompt, near[i].target)] for i in asked]  # type: ignore[union-attr]
        for i, (logit,) in zip(asked, self._verifier.read([queries[i] for i in asked], texts), strict=True):
            if logit < self._threshold:
                near[i] = None
        return near

    def _nearest(self, queries: Sequence[str]) -> tuple[list[float], list[int]]:
        if not self._edits or not queries:
            return [-1.0] * len(queries), [0] * len(queries)
        similarities, rows = self._vectors.nearest(self._encoder.encode(queries))
        return similarities[:, 0].tolist(), rows[:, 0].tolist()


class _Told(EditedSystem):
    """The base model, with a fact in front of the query where one was found."""

    def __init__(self, base: Base, name: str, store: Store | None, wording: str) -> None:
        super().__init__(base, name)
        self._store, self._wording = store, wording

    def _prompts(self, queries: Sequence[str]) -> dict[str, Any]:
        return super()._prompts(self._with_facts(queries))

    def _tokens(self, query: str, answer: str | Answer) -> list[int]:
        return super()._tokens(self._with_facts([query])[0], answer)

    def _with_facts(self, queries: Sequence[str]) -> list[str]:
        found = self._store.found(queries) if self._store else [None] * len(queries)
        return [
            query if edit is None else self._wording.format(prompt=edit.prompt, target=edit.target, query=query)
            for query, edit in zip(queries, found, strict=True)
        ]


class _Cached(EditedSystem):
    """The stored answer where one was found, else the base model's."""

    def __init__(self, base: Base, name: str, store: Store | None) -> None:
        super().__init__(base, name)
        self._store = store

    def answers(self, queries: Sequence[str], limits: Sequence[int], top_k: int = 1, seed: int = 0) -> list[Answer]:
        stored = self._stored(queries)
        asked = [i for i, answer in enumerate(stored) if answer is None]
        said = super().answers([queries[i] for i in asked], [limits[i] for i in asked], top_k, seed) if asked else []
        found = dict(zip(asked, said, strict=True))
        return [found[i] if answer is None else Answer(answer.target) for i, answer in enumerate(stored)]

    def agreement(
        self, queries: Sequence[str], wanted: Sequence[str | Answer], said: Sequence[Answer] | None = None
    ) -> list[float]:
        """A stored answer agrees as far as its tokens are the wanted ones."""
        stored = self._stored(queries)
        asked = [i for i, answer in enumerate(stored) if answer is None]
        shares = super().agreement([queries[i] for i in asked], [wanted[i] for i in asked]) if asked else []
        found = dict(zip(asked, shares, strict=True))
        return [
            found[i] if edit is None else _agreement(self._tokens(query, edit.target), self._tokens(query, wanted[i]))
            for i, (query, edit) in enumerate(zip(queries, stored, strict=True))
        ]

    def _stored(self, queries: Sequence[str]) -> list[Edit | None]:
        return self._store.found(queries) if self._store else [None] * len(queries)


def _agreement(said: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of the wanted tokens that stand at their place in what was said."""
    return token_agreement([*said, *[-1] * len(wanted)][: len(wanted)], wanted)
