"""What the commands share: consoles, options, and how text reaches the terminal."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from megedit.errors import MegError

if TYPE_CHECKING:  # the libraries behind the commands take seconds to import; `meg --help` should not
    import torch

out = Console()
err = Console(stderr=True)


class Dtype(StrEnum):
    auto = "auto"
    bfloat16 = "bfloat16"
    float32 = "float32"


def usable_device(name: str) -> str:
    """The name of a torch device, after checking that it can be used here."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise MegError(f"The device {name!r} cannot be used ({str(error).splitlines()[0]}); choose another.") from error
    return name


def torch_dtype(dtype: Dtype) -> torch.dtype | None:
    """The dtype of that name; None for the default of the device."""
    import torch

    return {Dtype.auto: None, Dtype.bfloat16: torch.bfloat16, Dtype.float32: torch.float32}[dtype]


def plain(text: str) -> str:
    """Text on one line that rich prints as it is."""
    from rich.markup import escape

    return escape(" ".join(text.split()))


AdapterName = Annotated[str, typer.Argument(help="Adapter: folder or hub name", show_default=False)]
MovedBase = Annotated[str | None, typer.Option("--base", help="Where the base model is now, if it was moved")]
DtypeOption = Annotated[Dtype, typer.Option(help="Base model's number format; auto: bfloat16 where it is native")]
DeviceOption = Annotated[str, typer.Option(help="torch device", callback=usable_device)]
