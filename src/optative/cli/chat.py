"""`optative chat`: the base and the steered model answer the same message, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

# Everything that could move the cursor, colour the terminal or turn the reading direction; newline and tab stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def chat(
    model: Annotated[str, typer.Argument(help="A run folder, a built-in model, a model folder, or a hub id.")],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A LoRA adapter to put on the model.", show_default=False)
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", help="Ask this once and end; else a conversation.", show_default=False)
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Chat template in place of the model's own.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: the most likely answer.")] = 0.7,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other answers.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="With --message: print one JSON object.")] = False,
) -> None:
    """Talk to a model; with a run folder or an adapter, to the base and the steered model side by side.

    Each of the two remembers its own answers. An empty line is ignored; Ctrl-D ends.
    """
    from optative.cli.output import console, print_json
    from optative.core.errors import InputError

    if json and message is None:
        raise InputError("cannot act without --message", field="--json")
    if message is not None and not message.strip():
        raise InputError("empty", field="--message")
    voices = _voices(model, adapter, template, max_new_tokens, temperature, seed)
    if message is not None:
        answers = {voice.name: voice.answer(message) for voice in voices}
        if json:
            print_json({"message": message, "answers": answers})
        else:
            _show(answers, console())
        return
    import readline  # noqa: F401  (gives `input` history and editing)

    for text in _lines():
        try:
            _show({voice.name: voice.answer(text) for voice in voices}, console())
        except InputError as error:  # such as a conversation that has outgrown the context: the person can go on
            console(stderr=True).print(f"Error: {error}")


class _Voice:
    """One of the two that answer, with its own memory of the conversation."""

    def __init__(self, name: str, lm: Any, switch: Any, settings: Any, seed: int) -> None:
        self.name, self._lm, self._switch, self._settings, self._seed = name, lm, switch, settings, seed
        self._history: list[dict[str, str]] = []

    def answer(self, message: str) -> str:
        from optative.generators.language.sample import sample

        asked = [*self._history, {"role": "user", "content": message}]
        with self._switch(self._lm):
            ((completion,),) = sample(self._lm, [asked], 1, self._settings, seed=self._seed)
        self._history = [*asked, {"role": "assistant", "content": completion.text}]
        return completion.text


def _voices(
    model: str, adapter: Path | None, template: str | None, max_new_tokens: int, temperature: float, seed: int
) -> list[_Voice]:
    from optative.cli.output import console
    from optative.core.errors import InputError
    from optative.generators.language.adapters import adapter_off, has_adapter, merged
    from optative.generators.language.load import load_language_model
    from optative.generators.language.sample import SamplingSettings
    from optative.runs.export import is_run, open_run

    if is_run(model):
        for option, value in (("--adapter", adapter), ("--template", template)):
            if value is not None:
                raise InputError("cannot act: a run has its own", field=option, found=str(value))
        lm = open_run(model)
    else:
        lm = load_language_model(model, adapter=adapter, template=template)
    words = console(stderr=True)
    for line in (f"{lm.name}, {lm.dtype_reason}", *lm.notes):
        words.print(line, style="dim")
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature)
    if not has_adapter(lm):
        return [_Voice(lm.name, lm, merged, settings, seed)]
    return [_Voice("base", lm, adapter_off, settings, seed), _Voice("steered", lm, merged, settings, seed)]


def _show(answers: dict[str, str], console: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*answers, expand=True, show_lines=False)
    table.add_row(*[Text(printable(answer)) for answer in answers.values()])
    console.print(table)


def _lines() -> Iterator[str]:
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        if text:
            yield text


def printable(text: str) -> str:
    """What a model wrote, without characters that act on a terminal instead of showing."""
    return _CONTROL.sub("", text)
