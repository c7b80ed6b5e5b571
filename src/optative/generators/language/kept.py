"""A language model that is made once and loaded from then on.

Knows: a folder that appears whole or not at all. Does not know: how the model is made, what decides its folder's name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optative.core.files import atomic_folder
from optative.generators.language.load import load_language_model
from optative.generators.language.model import LanguageModel
from optative.generators.language.quiet import quiet
from optative.generators.language.tiny import save


def kept(folder: Path, make: Callable[[], LanguageModel]) -> LanguageModel:
    """The model of `folder`, made and written there if it is not. Loaded the first time too, so that all times agree.

    The caller names the folder after all that moves the model. Frozen, in float32, without adapters.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lm = make()
        with quiet(), atomic_folder(folder) as temporary:
            save(lm, temporary)
    return load_language_model(str(folder), dtype="float32", device="cpu")
