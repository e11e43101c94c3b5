"""The commands `meg ask` and `meg explain`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from megedit.cli.options import (
    AdapterName,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MovedBase,
    out,
    plain,
    torch_dtype,
)
from megedit.errors import MegError

if TYPE_CHECKING:  # the libraries behind these take seconds to import
    from megedit.explain import TokenAnswer

LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of an answer at most [default: 50, more for a longer target]", show_default=False),
]


def ask(
    adapter: AdapterName,
    question: Annotated[str, typer.Argument(help="The question, without any template", show_default=False)],
    base: MovedBase = None,
    max_new_tokens: LimitOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Ask one question: edited and base answer, what the router saw, the nearest edit."""
    from megedit.model import MegModel

    if not question.strip():
        raise MegError("The question is empty; give one in quotation marks.")
    if question.encode(errors="ignore").decode() != question:
        raise MegError("The question holds bytes that are not UTF-8; type it again.")
    model = MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device)
    (edited,) = model.greedy([question], max_new_tokens)
    (route,) = model.routes
    with model.disable_edits():
        (unedited,) = model.greedy([question], max_new_tokens)
    if as_json:
        fields = asdict(route)
        answers: dict[str, str | bool] = {"edited": edited.text.strip(), "base": unedited.text.strip()}
        answers |= {"edited_cut": edited.cut, "base_cut": unedited.cut}
        typer.echo(json.dumps({**answers, **fields}, ensure_ascii=False))
        return
    out.print(f"[bold]edited answer[/]  {_marked(edited.text, edited.cut)}", highlight=False, soft_wrap=True)
    out.print(f"base answer    {_marked(unedited.text, unedited.cut)}", highlight=False, soft_wrap=True)
    out.print(f"router         {route.why}", highlight=False, soft_wrap=True)
    for near in route.nearest[:1]:
        edit = f"{plain(near.edit.id)}: {plain(near.edit.prompt)} -> {plain(near.edit.target)}"
        out.print(f"nearest edit   {edit} (similarity {near.similarity:.3f})", highlight=False, soft_wrap=True)


def explain(
    adapter: AdapterName,
    question: Annotated[str, typer.Argument(help="The question, without any template", show_default=False)],
    base: MovedBase = None,
    max_new_tokens: LimitOption = None,
    as_json: JsonOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Explain an answer: router, nearest edits, neuron, and both answers with the probability of every token."""
    from megedit.explain import explain as explain_answer
    from megedit.model import MegModel

    model = MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device)
    found = explain_answer(model, question, max_new_tokens)
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    route = found.route
    rows = {
        "edited answer": _probable(found.edited),
        "base answer": _probable(found.base),
        "router": route.why,
        "entropy": f"{route.entropy:.4f} nats",
        "neuron": route.neuron or "none",
        "generated against collected": "-" if found.distance is None else f"{found.distance:.4f}",
    }
    for name, value in rows.items():
        out.print(f"[bold]{name:<28}[/]{value}", highlight=False, soft_wrap=True)
    table = Table(title="Nearest edits", title_justify="left")
    for column in ("verifier", "similarity", "id", "prompt", "target"):
        table.add_column(column, overflow="fold")
    for near in found.nearest:
        edit, score = near.edit, "-" if near.score is None else f"{near.score:.2f}"
        table.add_row(score, f"{near.similarity:.3f}", plain(edit.id), plain(edit.prompt), plain(edit.target))
    out.print(table)


def _probable(answer: TokenAnswer) -> str:
    tokens = " ".join(f"{token.strip()} {p:.2f}" for token, p in zip(answer.tokens, answer.probabilities, strict=True))
    return f"{_marked(answer.text, answer.cut)}  [dim]({plain(tokens)})[/]"


def _marked(text: str, cut: bool) -> str:
    return plain(text.strip()) + (" … [dim](cut here: --max-new-tokens)[/]" if cut else "")
