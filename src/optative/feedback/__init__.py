"""Asking for feedback. Knows: who judged what, and how strongly. Does not know: how the answer is used."""
