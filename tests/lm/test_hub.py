"""Models of the Hugging Face Hub: downloads, the cache and copies of before."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from megedit.errors import MegError
from megedit.lm import places
from megedit.lm.loading import fingerprint, load_base, resolve_folder
from megedit.lm.places import resolve_copy
from tests.tiny import tiny_model


def test_a_download_without_network(offline: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "megedit")
    for load in (load_base, resolve_folder):
        with pytest.raises(MegError, match=r"owner/name .*could not be downloaded.*check the network"):
            load("owner/name")
    assert caplog.messages == ["Downloading owner/name from the Hugging Face Hub"] * 2


def test_a_download_asks_the_cache_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    empty = tmp_path / "empty"
    empty.mkdir()

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append({"repository": repository, **options})
        return str(empty if options["local_files_only"] else folder)

    monkeypatch.setattr(places, "snapshot_download", snapshot_download)
    assert resolve_folder("owner/name@v1") == folder
    assert [call["local_files_only"] for call in calls] == [True, False]
    assert {(call["repository"], call["revision"]) for call in calls} == {("owner/name", "v1")}
    assert not any("bin" in pattern or "py" in pattern for pattern in calls[1]["allow_patterns"])

    calls.clear()
    empty = folder
    assert load_base("owner/name")[0].config.model_type == "llama"
    assert [call["local_files_only"] for call in calls] == [True]


def test_a_cached_model_is_loaded_offline(folder: Path, offline: None) -> None:
    commit = "0" * 40
    repository = Path(constants.HF_HUB_CACHE) / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    for name in ("owner/name", "owner/name@main", f"owner/name@{commit}"):
        assert fingerprint(load_base(name)[0]) == fingerprint(tiny_model("llama"))
    with pytest.raises(MegError, match=r"owner/name@v2 .*could not be downloaded"):
        load_base("owner/name@v2")


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cached copy of owner/name, of which `folder` is what the Hub has now; empty at first."""
    cached = tmp_path / "cached"
    cached.mkdir()

    def snapshot_download(repository: str, **options: Any) -> str:
        if not options["local_files_only"]:
            shutil.copytree(folder, cached, dirs_exist_ok=True)
        return str(cached)

    monkeypatch.setattr(places, "snapshot_download", snapshot_download)
    monkeypatch.setattr(HfApi, "repo_info", lambda api, repository, revision: None)
    return cached


def out_of_reach(*args: Any, **options: Any) -> None:
    raise ConnectionError("no route\nto host")


def test_a_copy_is_refreshed(hub: Path, folder: Path) -> None:
    (folder / "README.md").write_text("old")
    assert resolve_copy("owner/name", ["*"]) == hub
    (folder / "README.md").write_text("new")
    assert (resolve_copy("owner/name", ["*"]) / "README.md").read_text() == "new"


def test_a_copy_of_before_where_the_hub_cannot_be_reached(
    hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(HfApi, "repo_info", out_of_reach)
    with pytest.raises(MegError, match=r"owner/name .*could not be downloaded.*ConnectionError: no route\); check"):
        resolve_copy("owner/name", ["*"])
    (hub / "model.safetensors").touch()
    assert resolve_copy("owner/name", ["*"]) == hub
    assert caplog.messages == [
        "The Hugging Face Hub cannot be reached (ConnectionError: no route); owner/name is used as it was when it was "
        "downloaded last."
    ]


def test_a_copy_of_a_path_is_the_path(folder: Path) -> None:
    assert resolve_copy(str(folder), ["*"]) == folder
    with pytest.raises(MegError, match="does not exist; check the path"):
        resolve_copy(str(folder / "none"), ["*"])
