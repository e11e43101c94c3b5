"""Adapters on the Hugging Face Hub: what is uploaded, and what is read from the cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._paths import filter_repo_objects

from megedit.adapter.adapter import Adapter, load_adapter
from megedit.errors import MegError
from tests.adapter.test_adapter import FILES, MODEL
from tests.adapter.test_folder import files_of
from tests.conftest import Fitted


class FakeHub:
    """Stands for `HfApi`: keeps what was uploaded."""

    calls: list[tuple[str, dict[str, Any]]]
    uploaded: dict[str, bytes]

    def __init__(self, token: str | None = None) -> None:
        FakeHub.calls = [("HfApi", {"token": token})]

    def create_repo(self, name: str, **options: Any) -> str:
        FakeHub.calls.append(("create_repo", {"name": name, **options}))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path, delete_patterns: list[str]) -> None:
        FakeHub.calls.append(("upload_folder", {"repo_id": repo_id, "delete_patterns": delete_patterns}))
        FakeHub.uploaded = files_of(folder_path)


def test_push_to_the_hub(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    adapter: Adapter = load_adapter(fitted.adapter)
    assert adapter.push_to_hub("owner/name", private=True, token="key") == "https://huggingface.co/owner/name"
    patterns = ["model-*.safetensors", "verifier.safetensors", "second_verifier.safetensors"]
    patterns += ["encoder.safetensors", "encoder/*"]
    assert FakeHub.calls == [
        ("HfApi", {"token": "key"}),
        ("create_repo", {"name": "owner/name", "exist_ok": True, "private": True}),
        ("upload_folder", {"repo_id": "owner/name", "delete_patterns": patterns}),
    ]
    assert FakeHub.uploaded == files_of(fitted.adapter)


def test_a_hub_name_from_the_cache(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache holds links to its blobs; other links stay refused."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit, repository = "0" * 40, tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    shutil.copytree(fitted.adapter, snapshot)
    for folder in (blobs, repository / "refs"):
        folder.mkdir()
    (repository / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert load_adapter("owner/name").active_edits == fitted.edits.edits

    (snapshot / "seen.safetensors").unlink()
    (snapshot / "seen.safetensors").symlink_to(fitted.adapter / "seen.safetensors")
    with pytest.raises(MegError, match=r"seen\.safetensors is outside the folder"):
        load_adapter("owner/name")


def test_what_is_downloaded_is_all_of_it(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the model files of earlier revisions: the ledger comes first, and names the one in use."""
    asked: list[dict[str, Any]] = []
    model = (adapter_folder / MODEL).read_bytes()
    (adapter_folder / MODEL).unlink()

    def chosen() -> list[set[str]]:
        there = [*FILES, "model-0000.safetensors", "evil.py", "model.bin"]
        patterns = ({name: options[name] for name in ("allow_patterns", "ignore_patterns")} for options in asked)
        return [set(filter_repo_objects(there, **options)) for options in patterns]

    def download(repository: str, **options: Any) -> str:
        asked.append(options)
        if MODEL in chosen()[-1]:
            (adapter_folder / MODEL).write_bytes(model)
        return str(adapter_folder)

    monkeypatch.setattr("megedit.lm.places.snapshot_download", download)
    load_adapter("owner/name@v1")
    assert all(options["revision"] == "v1" for options in asked)
    assert set().union(*chosen()) == FILES and MODEL not in chosen()[0]
    count = len(asked)
    load_adapter("owner/name@v1")
    assert not any(MODEL in names for names in chosen()[count:])  # it is there
