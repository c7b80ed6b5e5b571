"""A reference that follows the policy: every so many steps it is moved a share of the way (TR-DPO).

Knows: the trained weights as they were, files of moved ones. Does not know: losses.
Gorbatovski et al. 2024, arXiv:2404.09656, eq. 4: theta_ref <- mix * theta + (1 - mix) * theta_ref, here of what is
trained: the two factors of an adapter, or all weights. Each move is written before a step uses it, so that a resumed
training finds the reference that it had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from optative.core.files import write_bytes
from optative.generators.language.model import LanguageModel
from optative.generators.language.trained import trained_parameters
from optative.training.distribution import world


class MovingReference:
    """The weights of the reference at each step of one training (`key`), beginning with the policy's own."""

    def __init__(self, lm: LanguageModel, *, every: int, mix: float, folder: Path, key: str, keep: int) -> None:
        """keep: most steps between two checkpoints; files of moves that no checkpoint can need are deleted."""
        self.every, self.mix, self.folder, self.key, self.keep = every, mix, folder, key, keep
        self.parameters = trained_parameters(lm)
        self.weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.moved = 0  # the step (from 0) before which it moved last

    def before(self, step: int) -> None:
        """Bring the reference to where step `step` (from 0) of the training finds it."""
        move = step // self.every * self.every
        if move == self.moved:
            return
        file = self._file(move)
        if file.exists():
            self.weights = load_file(file, device=str(next(iter(self.weights.values())).device))
        else:
            assert move == step, "a move is missing: its file was deleted"
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.lerp_(self.parameters[name].detach(), self.mix)
            if world().is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_bytes(file, save({name: w.cpu().contiguous() for name, w in self.weights.items()}))
                for old in self.folder.glob(f"reference-{self.key}-*.safetensors"):
                    if int(old.stem.rpartition("-")[2]) <= move - self.keep - self.every:
                        old.unlink()
        self.moved = move

    @contextlib.contextmanager
    def in_place(self, lm: LanguageModel) -> Iterator[None]:
        """The model is the reference inside, without dropout and gradients; its own weights are back afterwards."""
        own = {name: p.data for name, p in self.parameters.items()}
        training = lm.model.training
        lm.model.eval()
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.weights[name]
            with torch.no_grad():
                yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]
            lm.model.train(training)

    def _file(self, move: int) -> Path:
        return self.folder / f"reference-{self.key}-{move}.safetensors"
