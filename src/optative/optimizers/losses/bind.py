"""A loss with its numbers filled in: which tensors it takes, and the call with no more than these.

Knows: the table of losses, signatures. Does not know: where tensors come from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from optative.optimizers.options import LOSSES, Kind, Preference, own_fields


@dataclass(frozen=True)
class Bound:
    """A loss that is ready to be called: `bound(chosen_B=..., rejected_B=..., ...)` gives one value per unit, [B].

    needs: tensors that have to be given; takes: those that may be, too. coupled: only a whole step gives the right
    value. Tensors that the loss does not know are an error.
    """

    name: str
    kind: Kind
    coupled: bool
    needs: frozenset[str]
    takes: frozenset[str]
    function: Callable[..., torch.Tensor]
    numbers: dict[str, Any]

    @property
    def reference(self) -> bool:
        """Does it compare with a reference policy?"""
        return any(name.startswith("ref_") for name in self.needs)

    def __call__(self, **tensors: torch.Tensor) -> torch.Tensor:
        unknown, missing = tensors.keys() - self.takes, self.needs - tensors.keys()
        if unknown or missing:
            raise TypeError(f"{self.name} does not take {sorted(unknown)} and lacks {sorted(missing)}")
        return self.function(**tensors, **self.numbers)


def bind(name: str, options: Preference) -> Bound:
    """The loss `name` with the numbers of `options`."""
    loss, function = LOSSES[name], function_of(name)
    tensors = tensors_of(function)
    return Bound(
        name=name,
        kind=loss.kind,
        coupled=loss.coupled,
        needs=frozenset(tensor for tensor, needed in tensors.items() if needed),
        takes=frozenset(tensors),
        function=function,
        numbers={field: getattr(options, field) for field in own_fields(type(options))},
    )


def function_of(name: str) -> Callable[..., torch.Tensor]:
    """The pure function of a loss."""
    module, _, function = LOSSES[name].function.partition(":")
    return getattr(import_module(module), function)


def tensors_of(function: Callable[..., torch.Tensor]) -> dict[str, bool]:
    """The tensors that a loss takes, and whether it cannot do without them; numbers are keyword-only."""
    return {
        name: parameter.default is parameter.empty
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
