"""The wheel: built from the sources, installed into an environment of its own, and used there as a stranger would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import made_up_pseudo_knowledge
from tests.tiny import tiny_encoder

ROOT = Path(__file__).resolve().parent.parent
FORMAT_3 = ROOT / "tests" / "data" / "format_3"


def project() -> dict[str, Any]:
    values: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return values


def test_the_lowest_versions_are_those_of_the_package() -> None:
    """`constraints-lowest.txt` has every dependency, torch apart, in the lowest version allowed; the server's, too."""
    lines = (ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project()["optional-dependencies"]
    tools = [name for name in extras["dev"] if name.startswith(("pytest", "hypothesis", "openai"))]
    bounds = dict(re.findall(r"([\w-]+)>=([\d.]+)", "\n".join([*project()["dependencies"], *extras["serve"], *tools])))
    del bounds["torch"]
    assert pinned.keys() == bounds.keys()
    for name, version in pinned.items():
        assert re.fullmatch(rf"{re.escape(bounds[name])}(\.0)*(\.post\d+)?", version), name


def test_every_version_that_the_tests_need_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    optional = project()["optional-dependencies"]
    extras = [names for extra, names in optional.items() if extra != "vllm"]  # an environment of its own
    needed = [name for names in (project()["dependencies"], *extras) for name in names]
    for requirement in needed:
        name = re.split(r"[>\[]", requirement)[0].lower().replace("_", "-")
        assert name in {*pinned, "megedit"}, f"run: make lock ({name})"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", "build"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder / "dist", folder], check=True)
    [path] = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def meg(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `meg` of the installed wheel.

    Its environment is new and holds the wheel alone. The libraries are those of this environment, whose folder is put
    behind the new one's on the search path: to install them again would take minutes. `make setup` does install them.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    places = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    site = Path(places["purelib"])
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, env=clean_environment())
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Path(places["scripts"]) / "meg"


def clean_environment() -> dict[str, str]:
    """This environment without the variable that would let the sources be imported instead of the wheel."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(meg: Path, folder: Path, *arguments: object) -> str:
    command = [str(meg), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "src" / "megedit"
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert {"megedit/py.typed", "megedit/data/facts.jsonl"} <= held


@pytest.mark.slow
def test_the_installed_command(meg: Path, tmp_path: Path) -> None:
    """Help, the edits of a shipped adapter, and a fit of three facts into a tiny random model."""
    assert "Usage: meg" in run(meg, tmp_path, "--help")
    site = run(meg.with_name("python"), tmp_path, "-c", "import megedit; print(megedit.__file__)")
    assert Path(site.strip()).is_relative_to(meg.parent.parent)
    adapter = shutil.copytree(FORMAT_3 / "adapter", tmp_path / "adapter")
    answers = json.loads((FORMAT_3 / "answers.json").read_text("utf-8"))
    listed = [json.loads(line) for line in run(meg, tmp_path, "list", adapter, "--json").splitlines()]
    assert listed and answers
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        "".join(
            json.dumps({"id": name, "prompt": f"Where was {name} born?", "target": "Par", "subject": name}) + "\n"
            for name in ("Ada", "Bo", "Cy")
        )
    )
    encoder = tiny_encoder(tmp_path / "encoder")
    pseudo = tmp_path / "pseudo.jsonl"
    pseudo.write_text("".join(json.dumps(asdict(fact)) + "\n" for fact in made_up_pseudo_knowledge().facts))
    settings = {  # small, as the model is
        "encoder.steps": 2, "encoder.batch_size": 8, "familiarity.blocks": 2, "familiarity.steps": 30,
        "generator.width": 32, "generator.depth": 1, "generator.heads": 2, "generator.trunk_width": 64,
        "generator.min_steps": 300, "generator.batch_size": 16,
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    where = ("--base", FORMAT_3 / "base", "--edits", facts, "--encoder", encoder, "--out", tmp_path / "fitted")
    told = run(meg, tmp_path, "fit", *where, "--layer", 1, "--dtype", "float32", "--pseudo", pseudo, *options)
    assert "3 of 3 edits are in" in " ".join(told.split())
    edits = [json.loads(line) for line in run(meg, tmp_path, "list", tmp_path / "fitted", "--json").splitlines()]
    assert [(edit["id"], edit["status"]) for edit in edits] == [("Ada", "active"), ("Bo", "active"), ("Cy", "active")]
