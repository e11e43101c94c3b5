"""Fitting: stages that are kept and go on, edits that fail, input that cannot be used, disks that are full."""

from __future__ import annotations

import errno
import importlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import megedit.adapter.weights
import megedit.runtime.resume
from megedit.adapter.adapter import Adapter, load_adapter
from megedit.adapter.ledger import reading
from megedit.collect import Collected
from megedit.edits import EditSet
from megedit.encoder import shipped_encoder
from megedit.errors import MegError
from megedit.fitting import FitSettings
from megedit.lm.loading import load_base
from megedit.model import MegModel
from megedit.runtime.shipped import ENCODER, shipped
from megedit.settings import EncoderSettings, RouterSettings
from tests.conftest import Fitted
from tests.tiny import words_only

fitting = importlib.import_module("megedit.fitting")  # the package has a function of that name


class Killed(Exception):
    """Stands for a process that was killed."""


def kill(*args: Any, **kwargs: Any) -> Any:
    raise Killed


def assert_same_tensors(first: Path, second: Path) -> None:
    """Both adapter folders hold the same tensors, bit for bit, and the same edits."""
    for name in ("model-0001.safetensors", "encoder/weights.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    with reading(first) as one, reading(second) as other:
        numbers = [record.number for record in one.records()]
        assert one.records() == other.records() and one.vectors(numbers) == other.vectors(numbers)
        assert one.neurons(numbers) == other.neurons(numbers)


# ---------------------------------------------------------------------------------------------------
# Going on


@pytest.mark.parametrize("stage", ["calibrate", "train_generator"])
def test_an_interrupted_fit_goes_on(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(fitting, stage, kill)
        with pytest.raises(Killed):
            fitted.fit(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with monkeypatch.context() as resumed:
        resumed.setattr(fitting.TextEncoder, "tune", kill)
        resumed.setattr(fitting, "collect", kill)
        with caplog.at_level(logging.INFO, "megedit"):
            fitted.fit(tmp_path / "adapter")
    assert "Continuing the interrupted run" in caplog.text
    assert_same_tensors(tmp_path / "adapter", fitted.adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_every_other_input_starts_anew(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "adapter"
    with monkeypatch.context() as killed:
        killed.setattr(fitting, "calibrate", kill)
        with pytest.raises(Killed):
            fitted.fit(out)

    class Tuned(Exception):
        """The encoder is tuned, so the fit began at its first stage."""

    def tune(*args: Any) -> None:
        raise Tuned

    monkeypatch.setattr(fitting.TextEncoder, "tune", tune)
    first = replace(fitted.edits[0], target="Sp")
    others: list[dict[str, Any]] = [
        {"settings": replace(fitted.settings, seed=1)},
        {"settings": replace(fitted.settings, layer=2)},
        {"edits": EditSet.from_edits([first, *fitted.edits.edits[1:]])},
        {"pseudo": replace(fitted.pseudo, facts=fitted.pseudo.facts[:-1])},
        {"dtype": torch.bfloat16},
    ]
    for other in others:
        with pytest.raises(Tuned):
            fitted.fit(out, **other)


def test_stage_costs_are_recorded(fitted: Fitted) -> None:
    stages = load_adapter(fitted.adapter).config.provenance["stages"]
    assert list(stages) == [
        "Loading the base model",
        "Probing layers",
        "Tuning the text encoder",
        "Collecting neurons",
        "Encoding the edits",
        "Encoding held-out questions",
        "Training the router",
        "Training the generator",
        "Checking generated neurons",
    ]
    assert all(cost["seconds"] >= 0 and cost["peak_memory_mb"] > 0 for cost in stages.values())


def test_the_log_of_the_run(fitted: Fitted) -> None:
    lines = (fitted.adapter / "fit.log").read_text("utf-8").splitlines()
    assert "Fit of edits (8 edits) to" in lines[0] and "sample_steps" in lines[0]
    assert any("INFO Training the generator: begun" in line for line in lines)
    assert sum("peak memory" in line for line in lines) == 8


# ---------------------------------------------------------------------------------------------------
# Edits that fail


def failing(*failed: int) -> Callable[..., Collected]:
    collect = fitting.collect

    def fails(*args: Any, **options: Any) -> Collected:
        collected: Collected = collect(*args, **options)
        collected.leads[list(failed)] = -1.0
        return collected

    return fails


def quick(fitted: Fitted) -> FitSettings:
    """Settings for a generator that is hardly trained."""
    return replace(fitted.settings, generator=replace(fitted.settings.generator, min_steps=2, passes=1))


def test_a_failed_edit(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitting, "collect", failing(2, 5))
    adapter = fitted.fit(tmp_path / "adapter", settings=quick(fitted))
    assert "Edit edit-2 failed" in caplog.text and "Edit edit-5 failed" in caplog.text
    assert [record.edit.id for record in adapter.records if record.status == "failed"] == ["edit-2", "edit-5"]
    assert not any(record.generated for record in adapter.records if record.status == "failed")
    assert [edit.id for edit in adapter.active_edits] == [f"edit-{i}" for i in (0, 1, 3, 4, 6, 7)]
    assert "failed: edit-2, edit-5" in (tmp_path / "adapter" / "README.md").read_text()
    # the router's vectors are those of the active edits, in their order
    expected = adapter.encoder.encode([edit.prompt for edit in adapter.active_edits])
    torch.testing.assert_close(adapter.router.vectors.unpack(), expected, atol=5e-3, rtol=0)  # kept in 8 bits
    loaded = load_adapter(tmp_path / "adapter")
    assert loaded.active_edits == adapter.active_edits and len(loaded.records) == len(fitted.edits)


def test_queries_that_the_encoder_cannot_read_whole_are_told_once(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    long = [replace(edit, prompt="Once more. " * 80 + edit.prompt) for edit in fitted.edits.edits[:2]]
    monkeypatch.setattr(fitting, "calibrate", kill)
    with pytest.raises(Killed):
        fitted.fit(tmp_path / "adapter", EditSet.from_edits([*fitted.edits.edits[2:], *long]))
    told = [record.getMessage() for record in caplog.records if "longer than the" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("2 queries of edits") and told[0].endswith("edit edit-0.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_format_in_all_stages(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    asked: list[torch.dtype | None] = []

    class Encoder(fitting.TextEncoder):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            asked.append(self.compute_dtype)

    def train(*args: Any, **options: Any) -> None:
        asked.append(options["compute_dtype"])
        raise Killed

    monkeypatch.setattr(fitting, "TextEncoder", Encoder)
    monkeypatch.setattr(fitting, "train_generator", train)
    with pytest.raises(Killed):
        fitted.fit(tmp_path / "adapter", dtype=dtype)
    assert asked == [dtype] * 3  # the encoder before and after its tuning, the generator


def test_no_stage_takes_the_default_for_the_number_format(
    fitted: Fitted, tmp_path: Path, bfloat16: None, formats: set[torch.dtype]
) -> None:
    adapter = fitted.fit(tmp_path / "adapter", dtype=torch.float32)
    vectors = adapter.encoder.encode(["Who taught Iva Jones?"])
    adapter.generate(vectors, torch.zeros(1, dtype=torch.long))
    assert formats == {torch.float32}


def test_all_edits_failed(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "collect", failing(*range(8)))
    with pytest.raises(MegError, match="None of the edits could be made"):
        fitted.fit(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_uncertain_neuron_is_told(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leads_of = fitting.answer_leads_of

    def first_is_low(*args: Any) -> torch.Tensor:
        leads: torch.Tensor = leads_of(*args)
        leads[0] = 0.5
        return leads

    monkeypatch.setattr(fitting, "answer_leads_of", first_is_low)
    adapter = fitted.fit(tmp_path / "adapter", settings=quick(fitted))
    assert "Edit edit-0: the generated neuron does not give 'Par' with certainty" in caplog.text
    assert (adapter.records[0].status, adapter.records[0].generated) == ("active", False)


# ---------------------------------------------------------------------------------------------------
# Where the adapter goes


def test_a_folder_of_something_else(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    for overwrite in (False, True):
        with pytest.raises(MegError, match="is not an adapter; choose another folder"):
            fitted.fit(tmp_path, overwrite=overwrite)
        with pytest.raises(MegError, match="is not an adapter; choose another folder"):
            fitted.fit(tmp_path / "thesis.tex", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_adapter_is_replaced_only_when_asked(fitted: Fitted, adapter_folder: Path) -> None:
    with pytest.raises(MegError, match="already holds an adapter"):
        fitted.fit(adapter_folder)
    fewer = EditSet.from_edits(fitted.edits.edits[:7])
    fitted.fit(adapter_folder, fewer, overwrite=True, settings=quick(fitted))
    assert load_adapter(adapter_folder).active_edits == fewer.edits
    assert [path.name for path in adapter_folder.parent.iterdir()] == ["adapter"]


def test_an_empty_folder_is_used(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    fitted.fit(tmp_path / "adapter")
    assert_same_tensors(tmp_path / "adapter", fitted.adapter)


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_a_stage(fitted: Fitted, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(megedit.runtime.resume, "save_tensors", full_disk)
        with pytest.raises(MegError, match=r"No space left.*run the same command again"):
            fitted.fit(adapter_folder, overwrite=True, settings=quick(fitted))
    assert_same_tensors(adapter_folder, fitted.adapter)
    assert {path.name for path in adapter_folder.parent.iterdir()} == {"adapter", ".adapter.fit"}
    fitted.fit(adapter_folder, overwrite=True, settings=quick(fitted))
    assert [path.name for path in adapter_folder.parent.iterdir()] == ["adapter"]


def test_a_full_disk_at_the_end(fitted: Fitted, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def fails_in_the_adapter(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name.startswith("seen"):
            calls.append(path)
            full_disk()
        save_file(tensors, path)

    monkeypatch.setattr(megedit.adapter.weights, "save_file", fails_in_the_adapter)
    with pytest.raises(MegError, match=r"could not be written .*No space left.*untouched"):
        fitted.fit(adapter_folder, overwrite=True, settings=quick(fitted))
    assert len(calls) == 1
    assert_same_tensors(adapter_folder, fitted.adapter)
    assert {path.name for path in adapter_folder.parent.iterdir()} == {"adapter", ".adapter.fit"}


# ---------------------------------------------------------------------------------------------------
# Input that cannot be used


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_out_of_range(fitted: Fitted, tmp_path: Path, layer: int) -> None:
    with pytest.raises(MegError, match=f"Layer {layer} is out of range.* 0 to 3"):
        fitted.fit(tmp_path / "adapter", settings=replace(fitted.settings, layer=layer))
    assert not any(tmp_path.iterdir())


def test_targets_that_cannot_be_answered_stop_a_fit_before_anything_is_written(fitted: Fitted, tmp_path: Path) -> None:
    base = shutil.copytree(fitted.base, tmp_path / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    words_only().save_pretrained(base)
    with pytest.raises(MegError, match=r"Edit edit-0 cannot be made: its target, 'Par', cannot be .* the 7 others\."):
        replace(fitted, base=base).fit(tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_target_that_cannot_be_answered_fails_alone(
    fitted: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edits = EditSet.from_edits([replace(fitted.edits[0], target="</s>"), *fitted.edits.edits[1:]])
    adapter = fitted.fit(tmp_path / "adapter", edits=edits)
    assert [record.edit.id for record in adapter.records if record.status == "failed"] == ["edit-0"]
    assert "Edit edit-0 failed: its target, '</s>', has a special token" in caplog.text


def test_too_little_pseudo_knowledge(fitted: Fitted, tmp_path: Path) -> None:
    few = replace(fitted.pseudo, facts=fitted.pseudo.facts[:5])
    with pytest.raises(MegError, match="at least 8 pseudo-facts"):
        fitted.fit(tmp_path / "few", pseudo=few)
    none_held_out = replace(fitted.settings, held_out=0.01)
    with pytest.raises(MegError, match="Too little pseudo-knowledge"):
        fitted.fit(tmp_path / "nothing", settings=none_held_out)


def test_the_adapter_returned_is_the_one_written(fitted: Fitted, tmp_path: Path) -> None:
    made: Adapter = fitted.fit(tmp_path / "adapter", settings=quick(fitted))
    loaded = load_adapter(tmp_path / "adapter")
    assert made.config.to_json() == loaded.config.to_json() and made.records == loaded.records
    assert torch.equal(made.router.vectors.unpack(), loaded.router.vectors.unpack())
    assert made.collected.keys() == loaded.collected.keys()
    queries = ["Where was Ada Brook born?", "What else?"]
    vectors = made.encoder.encode(queries)
    assert torch.equal(vectors, loaded.encoder.encode(queries))
    assert torch.equal(made.generator.sample(vectors), loaded.generator.sample(vectors))
    scores = [[routing.score for routing in adapter.router.route(queries)] for adapter in (made, loaded)]
    assert scores[0] == scores[1]
    stored = load_file(tmp_path / "adapter" / "model-0001.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int8}


def test_the_rule_of_the_paper_has_no_verifier(fitted: Fitted, tmp_path: Path) -> None:
    settings = replace(quick(fitted), router=RouterSettings(rule="entropy"))
    adapter = fitted.fit(tmp_path / "adapter", settings=settings)
    assert adapter.router.verifier is None and not (tmp_path / "adapter" / "verifier.safetensors").exists()
    routes = adapter.router.route([edit.rephrases[0] for edit in fitted.edits] + ["It rained all day."])
    assert {routing.by for routing in routes} == {"entropy"}
    assert all((routing.fires is not None) == (routing.score >= routing.threshold) for routing in routes)


def test_of_the_shipped_encoder_only_its_changes_are_kept(fitted: Fitted, tmp_path: Path) -> None:
    settings = replace(quick(fitted), encoder=EncoderSettings())
    adapter = fitted.fit(tmp_path / "adapter", settings=settings)
    assert (tmp_path / "adapter" / "encoder.safetensors").read_bytes() == shipped(ENCODER).read_bytes()
    assert not (tmp_path / "adapter" / "encoder").exists()
    texts = ["Where was Ada Brook born?", "Good morning"]
    assert torch.equal(adapter.encoder.encode(texts), shipped_encoder().encode(texts))
    (tmp_path / "adapter" / "encoder.safetensors").unlink()
    with pytest.raises(MegError, match=r"encoder\.safetensors is missing"):
        load_adapter(tmp_path / "adapter")


def test_wordings_and_aliases_fire_their_edit(fitted: Fitted, tmp_path: Path) -> None:
    """Each has a vector of its own, and is answered at once; the ledger gives them back."""
    first, *rest = fitted.edits
    own = replace(first, wordings=("Birthplace of Ada Brook, please",), aliases=("A. B. Brook",))
    adapter = fitted.fit(tmp_path / "adapter", EditSet.from_edits([own, *rest]), settings=quick(fitted))
    assert adapter.active_edits[0] == own
    assert adapter.router.owners.tolist() == [0] * 4 + list(range(1, 8))
    for text in own.asked():
        (routing,) = adapter.router.route([text.upper()])
        assert routing.by == "words" and routing.fires is not None and routing.fires.edit == 0
    assert own.asked()[-1] == "Birthplace of A. B. Brook, please"
    model = MegModel(*load_base(str(fitted.base), dtype=torch.float32), adapter)
    assert model.answer(list(own.asked()), max_new_tokens=8) == [f"{own.target}."] * 4
