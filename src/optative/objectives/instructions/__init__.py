"""Verifiable instructions: kinds, prompts, checkers in two modes, the public IFEval file."""
