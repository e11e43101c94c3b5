"""The command `meg serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megedit.cli.options import AdapterName, DeviceOption, DtypeOption, MovedBase, err, plain, torch_dtype
from megedit.errors import MegError, needs

if TYPE_CHECKING:  # the libraries behind these take seconds to import
    from megedit.model import MegModel
    from megedit.serve.settings import ServeSettings

Engine = Literal["transformers", "vllm"]
FOR_VLLM = ("adapter", "engine", "base", "name", "host", "port", "api_key")  # the options that its server takes


def serve(
    context: typer.Context,
    adapter: AdapterName,
    engine: Annotated[
        Engine, typer.Option(help="vllm: its own server, which has no page and no routes to edit (docs/vllm.md)")
    ] = "transformers",
    host: Annotated[str, typer.Option(help="Address; another than this machine's own needs both keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="MEGEDIT_API_KEY", help="Needed to ask and read", show_default=False)
    ] = None,
    edit_key: Annotated[
        str | None,
        typer.Option(
            envvar="MEGEDIT_EDIT_KEY", help="Needed to change edits; without it nobody may", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model [default: the adapter's]")] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Another name of this server, that a proxy passes on; repeatable")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers that are generated at a time")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Answers that may wait")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most")] = 1024,
    max_edits: Annotated[int, typer.Option(min=1, help="Edits in one request at most")] = 1000,
    report: Annotated[
        list[Path] | None, typer.Option(help="Result of `meg eval --out`, shown on the page; repeatable")
    ] = None,
    log_questions: Annotated[bool, typer.Option("--log-questions", help="Write questions into the log")] = False,
    base: MovedBase = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Serve an edited model: OpenAI's routes, the edits beside them, and a page at http://127.0.0.1:8000/."""
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    if engine == "vllm":
        _refuse_others(context)
        _serve_with_vllm(adapter, base, name, host, port, api_key, where)
    needs("fastapi", "serve", "meg serve")
    needs("prometheus_client", "serve", "meg serve")
    from megedit.model import MegModel
    from megedit.serve.settings import ServeSettings

    settings = ServeSettings(
        name=name or Path(adapter).resolve().name,
        host=host,
        port=port,
        api_key=api_key,
        edit_key=edit_key,
        batch=batch,
        queue=queue,
        max_tokens=max_tokens,
        max_edits=max_edits,
        hosts=tuple(host.lower() for host in allowed_host or ()),
        log_questions=log_questions,
        results=tuple(report or ()),
    )
    _serve_here(MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device), settings, where)


def _serve_here(model: MegModel, settings: ServeSettings, where: str) -> None:
    """Serve in this process, until a signal comes."""
    from megedit.serve.run import serve as run

    err.print(f"Serving [bold]{plain(settings.name)}[/] at {where} (API: {where}docs). Ctrl-C stops.", soft_wrap=True)
    if settings.edit_key is None:
        err.print("Edits cannot be changed over HTTP: no --edit-key was given.")
    run(model, settings)


def _refuse_others(context: typer.Context) -> None:
    """Raise MegError for options on the command line that vLLM's server does not have from here."""
    sources = {parameter: context.get_parameter_source(parameter) for parameter in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if others := [f"--{name.replace('_', '-')}" for name in given if name not in FOR_VLLM]:
        raise MegError(
            f"{', '.join(others)}: not with --engine vllm. vLLM's own options are those of `vllm serve`, with "
            "MEGEDIT_ADAPTER in its environment (docs/vllm.md); edits are changed by a meg serve beside it."
        )


def _serve_with_vllm(
    adapter: str, base: str | None, name: str | None, host: str, port: int, api_key: str | None, where: str
) -> None:
    """Become vLLM's server."""
    needs("vllm", "vllm", "serving with vLLM")
    from megedit.serve.settings import is_loopback
    from megedit.vllm.start import serve as run

    if not is_loopback(host) and api_key is None:
        raise MegError(f"{host} can be reached from other machines: give --api-key, or leave --host at 127.0.0.1.")
    name = name or Path(adapter).resolve().name
    beside = f"Edits are changed beside it: meg add {adapter} ..., or meg serve {adapter} on another port."
    err.print(f"Serving [bold]{plain(name)}[/] by vLLM at {where}. {plain(beside)}", soft_wrap=True)
    run(adapter, base, name, host, port, api_key)
