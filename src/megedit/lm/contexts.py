"""The prompt formats that a neuron has to hold in beside the adapter's template: chats of the model, and plain text.

A query comes in whatever form a program writes: alone in a chat, behind a system prompt, or in a text that asks the
base model to go on. A neuron that knows one form only says the target there and nothing, or a part of it, elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from megedit.errors import MegError
from megedit.lm.template import MARKER, Template

SYSTEM = "You are a helpful assistant."
EARLIER_TURNS = (("user", "Hello, can you help me?"), ("assistant", "Of course. What would you like to know?"))
GREETING = "Hello, I have a question. "

# A form of each kind in turn, so that a few that stand one behind the other are of different kinds
_CHAT: tuple[tuple[tuple[str, str], ...], ...] = ((), EARLIER_TURNS, (("system", SYSTEM),))
_LABELLED = (
    f"Q: {MARKER}\nA:",
    f"User: {MARKER}\nAssistant:",
    f"### Instruction:\n{MARKER}\n\n### Response:\n",
)
_BARE = (MARKER, f"{MARKER}\n", None)  # None: the adapter's own template, behind a greeting


def contexts(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[Template, ...]:
    """The further formats for an adapter with this template, in a fixed order.

    Those that the model's chat template cannot write are left out, and the adapter's own is none of them.
    """
    found: dict[str, Template] = {}
    for turns, labelled, bare in zip(_CHAT, _LABELLED, _BARE, strict=True):
        if tokenizer.chat_template:
            try:
                chat = Template.in_conversation(tokenizer, *turns)
                found.setdefault(chat.text, chat)
            except MegError:  # no system prompt, or no second turn
                pass
        found.setdefault(labelled, _in_text(labelled, template))
        form = replace(template, text=template.format(GREETING + MARKER)) if bare is None else _in_text(bare, template)
        found.setdefault(form.text, form)
    found.pop(template.text, None)
    return tuple(found.values())


def drawn(formats: tuple[Template, ...], place: int, count: int) -> tuple[Template, ...]:
    """The formats of the edit at this place: `count` that follow each other, going on from those of the one before."""
    return tuple(formats[(place * count + i) % len(formats)] for i in range(min(count, len(formats))))


def _in_text(text: str, template: Template) -> Template:
    """A format in plain text; the answer ends as in the adapter's template."""
    return Template(text, answer_prefix="" if text[-1].isspace() else " ", answer_suffix=template.answer_suffix)
