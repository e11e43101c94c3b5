"""The prompt formats that a neuron has to hold in beside the adapter's template: chats of the model, and plain text.

A query comes in whatever form a program writes: alone in a chat, behind a system prompt, or in a text that asks the
base model to go on. A neuron that knows one form only says the target there and nothing, or a part of it, elsewhere.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from megedit.errors import MegError
from megedit.lm.template import MARKER, Template

SYSTEM = ("system", "You answer the questions of a company's staff.")
EARLIER_TURNS = (("user", "Hello, can you help me?"), ("assistant", "Of course. What would you like to know?"))
GREETING = "Hello, I have a question. "

# Forms of one kind are alike to a neuron: one that holds in one of them mostly holds in the others
BARE = (MARKER,)
LABELLED = (f"Q: {MARKER}\nA:", f"User: {MARKER}\nAssistant:")
ENDING_A_LINE = (f"{MARKER}\n", f"### Instruction:\n{MARKER}\n\n### Response:\n")
CHATS: tuple[tuple[tuple[str, str], ...], ...] = ((), EARLIER_TURNS, (SYSTEM,))

Kinds = tuple[tuple[Template, ...], ...]


def contexts(tokenizer: PreTrainedTokenizerBase, template: Template) -> Kinds:
    """The further formats for an adapter with this template: kind by kind, the kind that neurons hold in least first.

    Those that the model's chat template cannot write are left out, and the adapter's own is none of them.
    """
    texts = [[_in_text(text, template) for text in kind] for kind in (BARE, LABELLED, ENDING_A_LINE)]
    chats = [replace(template, text=template.format(GREETING + MARKER))]
    for turns in CHATS if tokenizer.chat_template else ():
        with suppress(MegError):  # a model without system prompts, or without second turns
            chats.insert(len(chats) - 1, Template.in_conversation(tokenizer, *turns))
    kinds = (tuple(form for form in kind if form.text != template.text) for kind in (*texts, chats))
    return tuple(kind for kind in kinds if kind)


def drawn(kinds: Kinds, place: int, count: int) -> tuple[Template, ...]:
    """The formats of the edit at this place: one of each kind in turn, another one than for the edit before."""
    forms = [kinds[i % len(kinds)][(place + i // len(kinds)) % len(kinds[i % len(kinds)])] for i in range(count)]
    return tuple({form.text: form for form in forms}.values())


def _in_text(text: str, template: Template) -> Template:
    """A format in plain text; the answer ends as in the adapter's template."""
    return Template(text, answer_prefix="" if text[-1].isspace() else " ", answer_suffix=template.answer_suffix)
