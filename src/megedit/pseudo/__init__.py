"""Pseudo-knowledge: facts that are not edited, on which the encoder is tuned and the router calibrated."""

from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge, load_pseudo_knowledge, text_key

__all__ = ["PseudoFact", "PseudoKnowledge", "load_pseudo_knowledge", "text_key"]
