"""Data sets: edits from a file or, by a public name, from the Hugging Face Hub."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megedit.edits.builder import OnConflict
from megedit.edits.edit_set import EditSet, edits_of, read_edits
from megedit.edits.rows import Row
from megedit.errors import MegError, needs

logger = logging.getLogger("megedit")


@dataclass(frozen=True)
class PublicDataset:
    """A data set on the Hub, and the schema by which it is read.

    `file` names one file of the repository, for those whose files differ in their fields; `revision` is the commit,
    None for the newest; `licence` is that of the data as far as it is known.
    """

    repository: str
    split: str
    schema: str
    licence: str
    file: str | None = None
    revision: str | None = None


_KNOWEDIT_LICENCE = "see the data set card"

PUBLIC: Mapping[str, PublicDataset] = {
    # 19,728 and 2,191 records, together the 21,919 of ROME
    "counterfact": PublicDataset(
        repository="azhx/counterfact",
        split="train+test",
        schema="counterfact",
        licence="MIT",
        revision="c01c413f856ee38f5c080c9fc5e87aff478e2ff9",
    ),
    "zsre": PublicDataset(
        repository="zjunlp/KnowEdit",
        split="train",
        schema="knowedit",
        licence=_KNOWEDIT_LICENCE,
        file="benchmark/ZsRE/ZsRE-test-all.json",
    ),
    "knowedit": PublicDataset(
        repository="zjunlp/KnowEdit",
        split="train",
        schema="knowedit",
        licence=_KNOWEDIT_LICENCE,
        file="benchmark/wiki_counterfact/test_cf.json",
    ),
    "mquake": PublicDataset(
        repository="henryzhongsc/MQuAKE-Remastered",
        split="CF3k",
        schema="mquake",
        licence="CC BY 4.0",
        revision="b54712d4b464d7e2d4edccd4022f95ddbcb719e7",
    ),
}


def load_edits(name_or_path: str | Path, *, limit: int | None = None, on_conflict: OnConflict = "error") -> EditSet:
    """The edits of a file, or of a public data set by its name in `PUBLIC`; `limit` and `on_conflict` as in `edits_of`.

    A public data set is downloaded once, by the `datasets` library and without running code of the repository, and
    read from its cache from then on.

    Raises:
        MegError: there is neither such a file nor such a name, the download fails, or a record cannot be used.
    """
    if os.path.exists(name_or_path):  # unlike Path.exists, False for what cannot be a path
        return read_edits(name_or_path, limit=limit, on_conflict=on_conflict)
    name = str(name_or_path)
    if name not in PUBLIC:
        raise MegError(f"{name}: there is no such file and no such public data set; {_choices()}")
    public = PUBLIC[name]
    numbered = enumerate(_rows(name, public), start=1)
    rows = (Row(f"{public.repository}, row {number}", fields) for number, fields in numbered)
    return edits_of(rows, public.repository, "hub", schema=public.schema, limit=limit, on_conflict=on_conflict)


def _rows(name: str, public: PublicDataset) -> Iterable[Mapping[str, object]]:
    needs("datasets", "data", "reading public data sets")
    import datasets  # here, since it takes seconds to load and files do without it

    part = public.file or f"split {public.split}"
    logger.info(
        "Downloading %s of %s from the Hugging Face Hub, unless it is in the cache (licence: %s)",
        part, public.repository, public.licence,
    )  # fmt: skip
    try:
        rows: Iterable[Mapping[str, object]] = datasets.load_dataset(
            public.repository, data_files=public.file, split=public.split, revision=public.revision
        )
    except Exception as error:  # errors of the library's network, file and table layers have no class in common
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MegError(f"{name}: {public.repository} cannot be read from the Hub ({problem}); {_choices()}") from error
    return rows


def _choices() -> str:
    return f"give the path of a file, or one of the names {', '.join(PUBLIC)}"
