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

if TYPE_CHECKING:  # the libraries behind it take seconds to import
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
        fields = {name: value for name, value in vars(route).items() if name != "nearest"}
        answers: dict[str, str | bool] = {"edited": edited.text.strip(), "base": unedited.text.strip()}
        answers |= {"edited_cut": edited.cut, "base_cut": unedited.cut}
        typer.echo(json.dumps({**answers, **fields, "nearest": route.nearest.to_json()}, ensure_ascii=False))
        return
    out.print(f"[bold]edited answer[/]  {_marked(edited.text, edited.cut)}", highlight=False, soft_wrap=True)
    out.print(f"base answer    {_marked(unedited.text, unedited.cut)}", highlight=False, soft_wrap=True)
    sign = ">=" if route.familiar else "<"
    verdict = "an edit was used" if route.familiar else "no edit: the base model answers"
    out.print(f"router         {verdict} (score {route.score:.2f} {sign} {route.threshold:.2f})", highlight=False)
    out.print(f"entropy        {route.entropy:.4f} nats", highlight=False)
    near = route.nearest
    out.print(
        f"nearest edit   {plain(near.id)}: {plain(near.prompt)} -> {plain(near.target)} "
        f"(similarity {route.similarity:.3f})",
        highlight=False,
        soft_wrap=True,
    )


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
    if route.status == "removed":
        verdict = "no edit: the nearest one was removed"
    elif route.familiar:
        verdict = "an edit is used"
    else:
        verdict = "no edit: the base model answers"
    sign = ">=" if route.score >= route.threshold else "<"
    rows = {
        "edited answer": _probable(found.edited),
        "base answer": _probable(found.base),
        "router": f"{verdict} (rule {route.rule}: {route.score:.2f} {sign} {route.threshold:.2f})",
        "entropy": f"{route.entropy:.4f} nats",
        "names the subject": f"{route.named:.2f}",
        "neuron": route.neuron or "none",
        "generated against collected": "-" if found.distance is None else f"{found.distance:.4f}",
    }
    for name, value in rows.items():
        out.print(f"[bold]{name:<28}[/]{value}", highlight=False, soft_wrap=True)
    table = Table(title="Nearest edits", title_justify="left")
    for column in ("similarity", "id", "status", "prompt", "target"):
        table.add_column(column, overflow="fold")
    for near in found.nearest:
        edit = near.edit
        table.add_row(f"{near.similarity:.3f}", plain(edit.id), near.status, plain(edit.prompt), plain(edit.target))
    out.print(table)


def _probable(answer: TokenAnswer) -> str:
    tokens = " ".join(f"{token.strip()} {p:.2f}" for token, p in zip(answer.tokens, answer.probabilities, strict=True))
    return f"{_marked(answer.text, answer.cut)}  [dim]({plain(tokens)})[/]"


def _marked(text: str, cut: bool) -> str:
    return plain(text.strip()) + (" … [dim](cut here: --max-new-tokens)[/]" if cut else "")
