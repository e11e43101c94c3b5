"""The command line: what each command prints, and one clear sentence for whatever the user can mend."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner, Result

from megedit.adapter.adapter import load_adapter
from megedit.adapter.config import CONFIG
from megedit.errors import MegError
from megedit.operations.operations import remove
from megedit.settings import PRESETS
from tests.conftest import Fitted

cli = importlib.import_module("megedit.cli.app")
LIFE = ["list", "log", "diff", "add", "update", "remove", "undo", "rollback", "consolidate", "explain"]
COMMANDS = ["fit", "ask", "eval", "general", "report", "show", "probe", "demo", "serve", *LIFE]


def meg(*arguments: object) -> Result:
    """Run the command in this process; a MegError stays in `exception`, as `main` would find it."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def output(*arguments: object) -> str:
    result = meg(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def problem(*arguments: object) -> str:
    """The sentence that the user is told."""
    result = meg(*arguments)
    assert isinstance(result.exception, MegError), (result.output, result.exception)
    return str(result.exception)


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "megedit", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


# ---------------------------------------------------------------------------------------------------
# Help


def test_the_help_lists_the_commands() -> None:
    text = output("--help")
    for command in COMMANDS:
        assert f" {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command(command: str) -> None:
    """It names every option, and gives an example."""
    text = CliRunner().invoke(cli.app, [command, "--help"], terminal_width=200).stdout
    group: Any = get_command(cli.app)
    for parameter in group.commands[command].params:
        assert parameter.param_type_name == "argument" or parameter.opts[0] in text or "--help" in parameter.opts
    assert f"meg {command}" in text and "Example" in text


def test_an_unknown_option_or_none() -> None:
    assert meg("fit").exit_code == 2
    assert meg("ask", "adapter", "question", "--surprise").exit_code == 2
    assert meg("eval", "adapter", "--batch-size", "0").exit_code == 2
    assert meg("fit", "--base", "b", "--edits", "e", "--out", "o", "--margin", "-1").exit_code == 2
    assert "Usage" in meg().output


# ---------------------------------------------------------------------------------------------------
# What is wrong


def fit_with(fitted: Fitted, edits: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("fit", "--base", fitted.base, "--edits", edits, "--out", out, *more)


def test_edits_that_cannot_be_read(fitted: Fitted, tmp_path: Path) -> None:
    path, out = tmp_path / "edits.jsonl", tmp_path / "adapter"
    assert "edits.jsonl: there is no such file" in problem(*fit_with(fitted, path, out))
    path.write_text('{"prompt": "Q", "target": "A"}\n{"prompt": "Q2"\n')
    assert "edits.jsonl, line 2: this is not valid JSON" in problem(*fit_with(fitted, path, out))
    path.write_text('{"prompt": "Q", "target": "A"}\n{"prompt": "Q2"}\n')
    assert "edits.jsonl, line 2: the field `target` is missing" in problem(*fit_with(fitted, path, out))
    path.write_text('{"prompt": "Q", "target": "A"}\n{"prompt": "Q", "target": "B"}\n')
    assert "line 2" in problem(*fit_with(fitted, path, out))
    assert [path.name for path in tmp_path.iterdir()] == ["edits.jsonl"]


def test_a_fit_that_cannot_begin(fitted: Fitted, tmp_path: Path) -> None:
    path, out = tmp_path / "edits.jsonl", tmp_path / "adapter"
    path.write_text('{"prompt": "Q", "target": "A"}\n')
    assert "Layer 9 is out of range" in problem(*fit_with(fitted, path, out, "--layer", 9))
    assert "is not known: choose auto" in problem(*fit_with(fitted, path, out, "--template", "x"))
    assert "no-such.jsonl: there is no such file" in problem(
        *fit_with(fitted, path, out, "--pseudo", tmp_path / "no-such.jsonl")
    )
    assert "./nothing does not exist" in problem("fit", "--base", "./nothing", "--edits", path, "--out", out)
    assert "is not an adapter; choose another folder" in problem(*fit_with(fitted, path, tmp_path))
    assert "already holds an adapter" in problem(*fit_with(fitted, path, fitted.adapter))
    assert "The device 'abacus' cannot be used" in problem(*fit_with(fitted, path, out, "--device", "abacus"))
    assert "does not exist" in problem(*fit_with(fitted, path, out, "--encoder", "./no-encoder"))


@pytest.mark.parametrize("command", [("ask", "Who?"), ("eval",), ("show",)])
def test_adapters_that_cannot_be_used(adapter_folder: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    def told(adapter: Path) -> str:
        return problem(command[0], adapter, *command[1:])

    assert "nothing does not exist" in told(tmp_path / "nothing")
    assert f"is not an adapter: {CONFIG} is missing" in told(tmp_path)
    (adapter_folder / "seen.safetensors").write_text("{}\n")
    assert "is damaged: seen.safetensors is not as it was written" in told(adapter_folder)
    (adapter_folder / CONFIG).write_text("{")
    assert f"is damaged: {CONFIG} cannot be read" in told(adapter_folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there(fitted: Fitted) -> None:
    assert "The device 'cuda' cannot be used" in problem("ask", fitted.adapter, "Who?", "--device", "cuda")
    assert "The device 'cuda' cannot be used" in problem("eval", fitted.adapter, "--device", "cuda")


def test_questions_that_are_none(fitted: Fitted) -> None:
    for question in ("", "  ", "\n"):
        assert "The question is empty" in problem("ask", fitted.adapter, question)
    assert "bytes that are not UTF-8" in problem("ask", fitted.adapter, "Who is \udcff?")


def test_a_base_model_that_is_not_there(fitted: Fitted) -> None:
    assert "./gone does not exist" in problem("ask", fitted.adapter, "Who?", "--base", "./gone")


def test_a_result_that_cannot_be_written(fitted: Fitted, tmp_path: Path) -> None:
    """Told before the evaluation begins, not after it."""
    nowhere = tmp_path / "nowhere" / "result.json"
    assert "The folder of" in problem("eval", fitted.adapter, "--out", nowhere)
    assert f"{tmp_path} is a folder" in problem("eval", fitted.adapter, "--out", tmp_path)
    assert not any(tmp_path.iterdir())


def test_data_that_cannot_be_read(fitted: Fitted, tmp_path: Path) -> None:
    assert "there is no such file" in problem("eval", fitted.adapter, "--data", tmp_path / "no.jsonl")


# ---------------------------------------------------------------------------------------------------
# What is right


def test_ask(fitted: Fitted) -> None:
    text = output("ask", fitted.adapter, "Where was Ada Brook born?", "--dtype", "float32")
    lines = text.splitlines()
    assert lines[0] == "edited answer  Par."
    assert lines[1] == "base answer    Fr."
    assert lines[2] == "router         an edit is used (the question is in its very words)"
    assert lines[3].startswith("nearest edit   edit-0: Where was Ada Brook born? -> Par (similarity ")
    assert len(lines) == 4
    lines = output("ask", fitted.adapter, "When was Ada Brook born?", "--dtype", "float32").splitlines()
    assert lines[0].split()[-1] == lines[1].split()[-1] and "it asks for none of the edits near it" in lines[2]


def test_an_answer_that_is_cut_is_marked(fitted: Fitted) -> None:
    question, options = "Where was Ada Brook born?", ("--dtype", "float32", "--max-new-tokens", 1)
    lines = output("ask", fitted.adapter, question, *options).splitlines()
    assert lines[0] == "edited answer  Par … (cut here: --max-new-tokens)"
    assert lines[1] == "base answer    Fr … (cut here: --max-new-tokens)"
    assert "Par … (cut here" in output("explain", fitted.adapter, question, *options)


def test_ask_as_json(fitted: Fitted) -> None:
    question = "Where was Ada Brook born?"
    values = json.loads(output("ask", fitted.adapter, question, "--json", "--dtype", "float32", "--max-new-tokens", 1))
    assert (values["edited"], values["base"], values["query"]) == ("Par", "Fr", question)
    assert values["edited_cut"] and values["base_cut"]
    assert values["familiar"] is True and values["by"] == "words"
    assert values["nearest"][0]["edit"]["id"] == "edit-0" and values["nearest"][0]["similarity"] > 0.99


def test_show(fitted: Fitted) -> None:
    text = output("show", fitted.adapter)
    words = " ".join(text.split())
    for part in ("base model", "layer", "generator", "router", "template"):
        assert part in words
    for part in ("8 active, 0 failed, 0 removed", "1: fit", "fitted to edits"):
        assert part in words
    assert "edit-7" not in text


def test_names_with_brackets_are_printed_as_they_are(adapter_folder: Path) -> None:
    odd = adapter_folder.rename(adapter_folder.with_name("[bold]a[0]"))
    assert "[bold]a[0]" in "".join(output("show", odd).split())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
def test_eval(fitted: Fitted, tmp_path: Path) -> None:
    place = tmp_path / "results"
    place.mkdir()
    text = output(
        *("eval", fitted.adapter, "--out", place / "result.json", "--limit", 3, "--examples", 1, "--dtype", "float32"),
        *("--robustness", "upper,polite", "--rephrases", 1),
    )
    assert "3 edits, protocol paper 3" in text and "Reliability, AG" in text and "100.0" in text
    assert "upper, AG" in text and "polite, AG" in text
    assert "Where was Ada Brook born?" in text or "the edit" in text
    assert f"Every answer is in {place / 'result.json'}." in text
    values = json.loads((place / "result.json").read_text())
    assert values["metrics"][0]["edited"]["value"] == 100.0 and values["system"]["name"] == str(fitted.adapter)
    assert len(values["verdicts"]) == 15
    assert [path.name for path in place.iterdir()] == ["result.json"]


@pytest.mark.usefixtures("own_cache")
def test_eval_of_other_data_with_a_report(fitted: Fitted, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "Where was Bo Chen born?", "target": "Nowhere"}))
    report = tmp_path / "report"
    text = output("eval", fitted.adapter, "--data", data, "--examples", 0, "--report", report)
    assert "1 edits" in text and "Generality" not in text and "Answers" not in text
    assert "Nowhere" in (report / "index.html").read_text()
    again = output("report", report / "result.json", "--out", tmp_path / "again")
    assert f"The report is {tmp_path / 'again' / 'index.html'}." in again
    wild = tmp_path / "wild.json"
    output("eval", fitted.adapter, "--data", data, "--protocol", "wild", "--out", wild)
    assert "wild" in problem("report", report / "result.json", wild, "--out", tmp_path / "both")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "papers"), "There is no protocol 'papers'; choose from paper, wild"),
        (("--data", "no-such-set"), "no-such-set"),
        (("--robustness", "shout"), "There is no perturbation 'shout'"),
        (("--protocol", "counterfact"), "needs `target_true`, and 8 of 8 edits"),
    ],
)
def test_eval_refuses(fitted: Fitted, options: tuple[str, ...], message: str) -> None:
    assert message in problem("eval", fitted.adapter, *options)


def test_general_refuses(fitted: Fitted, tmp_path: Path) -> None:
    assert "No task is named" in problem("general", fitted.adapter, "--tasks", ",")
    assert "is not a folder" in problem("general", fitted.adapter, "--tasks", "a", "--task-folder", tmp_path / "none")
    assert meg("general", fitted.adapter).exit_code == 2


def test_fit(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options reach the settings, and the outcome is told."""
    asked: dict[str, Any] = {}

    def fit(base: str, edits: Any, out: Path, settings: Any, **options: Any) -> Any:
        asked.update(base=base, edits=edits, out=out, settings=settings, **options)
        return load_adapter(fitted.adapter)

    monkeypatch.setattr(importlib.import_module("megedit.fitting"), "fit", fit)
    edits = tmp_path / "edits.jsonl"
    edits.write_text(
        "".join(json.dumps(edit.to_json()) + "\n" for edit in fitted.edits) + '{"prompt": "Q", "target": "A"}'
    )
    text = output(
        *fit_with(fitted, edits, tmp_path / "a[1]", "--limit", 8, "--layer", 1, "--set", "collection.margin=2"),
        *("--set", "collection.positions=all", "--set", "generator.sample_steps=7"),
        *(
            "--preset",
            "paper",
            "--template",
            "raw",
            "--seed",
            5,
            "--encoder",
            "pypi:x",
            "--dtype",
            "bfloat16",
            "--overwrite",
        ),
    )
    assert f"8 of 8 edits are in {tmp_path / 'a[1]'}." in text
    settings = asked["settings"]
    assert (settings.layer, settings.template, settings.seed, settings.encoder.name) == (1, "raw", 5, "pypi:x")
    assert (settings.collection.margin, settings.collection.positions) == (2.0, "all")
    assert settings.generator == replace(PRESETS["paper"].generator, sample_steps=7)
    assert (asked["dtype"], asked["overwrite"], asked["device"]) == (torch.bfloat16, True, "cpu")
    assert [edit.prompt for edit in asked["edits"]] == [edit.prompt for edit in fitted.edits]


def test_the_demo_keeps_an_adapter_that_is_not_its_own(
    fitted: Fitted, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = importlib.import_module("megedit.cli.fit")
    monkeypatch.setattr(fit, "_fit", lambda *args: pytest.fail("it would be replaced"))
    with pytest.raises(MegError, match="holds an adapter that is not the demo's"):
        fit.demo(adapter_folder)
    assert fit._demo_may_replace(adapter_folder, fitted.edits)
    assert fit._demo_may_replace(adapter_folder / "nothing", fitted.edits)
    remove(adapter_folder, ["edit-1"])
    assert not fit._demo_may_replace(adapter_folder, fitted.edits)


# ---------------------------------------------------------------------------------------------------
# As a process


def test_a_process_prints_plain_text(fitted: Fitted) -> None:
    done = process("show", fitted.adapter)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout and "edits" in done.stdout


def test_a_process_tells_an_error_in_one_sentence(tmp_path: Path) -> None:
    done = process("ask", tmp_path / "nothing[0]", "Who?")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {tmp_path / 'nothing[0]'} does not exist; check the path.\n"


def test_main_tells_errors_and_interrupts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["meg", "show", "./no-such-adapter"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "Error: ./no-such-adapter does not exist; check the path.\n"

    def interrupted(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("megedit.cli.tables.print_adapter", interrupted)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert end.value.code == 130
    assert capsys.readouterr().err == "Interrupted; a fit or probe goes on when the same command is given again.\n"


@pytest.mark.parametrize(("command", "policy"), [("fit", "PASSIVE"), ("show", None)])
def test_threads_of_long_training_sleep_while_they_wait(
    command: str, policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"})
    CliRunner().invoke(cli.app, [command, "--help"])
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_vllm_takes_no_options_of_the_other_engine(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line; what stands in the environment may be for a server beside it."""
    monkeypatch.setenv("MEGEDIT_EDIT_KEY", "an-edit-key-of-somebody")
    refused = problem("serve", fitted.adapter, "--engine", "vllm", "--queue", 4, "--edit-key", "k" * 16)
    assert refused.startswith("--queue, --edit-key: not with --engine vllm")
    with_neither = problem("serve", fitted.adapter, "--engine", "vllm", "--host", "0.0.0.0")
    assert "--api-key" in with_neither or "megedit[vllm]" in with_neither
