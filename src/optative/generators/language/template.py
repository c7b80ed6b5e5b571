"""Chat templates: from messages to the text that the model was trained to see.

Knows: where a model folder keeps its template, Jinja rendering, whether a template adds a system turn of its own.
Does not know: tokens. A template is never made up: a model without one gets `plain` only when asked for by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optative.core.errors import InputError, unknown

PLAIN = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}Assistant:\n{{ m.content }}{{ eos_token }}\n\n"
    "{% else %}User:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_HINT = "Give one with the model's `template` option: a file, Jinja source, or `plain`."


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template and the special tokens that it may write.

    `name` is where it comes from (`chat_template.jinja`, `tokenizer_config.json`, `plain`, ...), for people to read.
    `tool_use` is the variant to render with when tools are passed, if the model has one.
    """

    source: str
    name: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    tool_use: str | None = None

    @classmethod
    def of(cls, model: Any, template: str | None = None) -> ChatTemplate:
        """The template of a model folder (path) or of a loaded tokenizer.

        `template`: a file, Jinja source, `plain`, or the name of one of the model's own templates; by default its
        `default`. In a folder `chat_template.jinja` wins over `tokenizer_config.json`, as in current Transformers.
        Raises `InputError` when there is none.
        """
        if isinstance(model, (str, Path)):
            where, named, tokens = _read_folder(Path(model))
        else:
            where, named, tokens = _read_tokenizer(model)
        tokens.setdefault("eos_token", "")
        tool_use = None
        if template is None:
            if "default" not in named:
                listed = f" (it has {', '.join(sorted(named))})" if named else ""
                raise InputError(f"the model has no default chat template{listed}", file=where, hint=_HINT)
            (source, name), tool_use = named["default"], named.get("tool_use", (None, ""))[0]
        elif template == "plain":
            source, name = PLAIN, "plain"
        elif template in named:
            source, name = named[template]
        elif "{{" in template or "{%" in template:
            source, name = template, "given"
        elif Path(template).is_file():
            source, name = Path(template).read_text(encoding="utf-8"), Path(template).name
        else:
            message = unknown("template", template, [*named, "plain"])
            raise InputError(
                message, field="template", hint="A template file that exists or Jinja source will do as well."
            )
        return cls(source, name, tokens, tool_use)

    @property
    def hash(self) -> str:
        """SHA-256 of the source: part of the identity of everything that was rendered with it."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, tools: Sequence[Any] | None = None
    ) -> str:
        """The text of a conversation; with `add_generation_prompt` it ends where the assistant's answer starts.

        Keys without a value never reach the template, so that one asking `is defined` sees what the data says.
        Raises `InputError` when the template refuses the conversation.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self.tool_use if tools and self.tool_use else self.source
        try:
            rendered = render_jinja_template(
                conversations=[[_without_nulls(m) for m in messages]],
                tools=list(tools) if tools else None,
                chat_template=source,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except TemplateError as error:
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise InputError(f"the chat template {self.name} refuses this conversation: {error}", found=roles) from None
        texts = rendered[0] if isinstance(rendered, tuple) else rendered
        return texts[0] if isinstance(texts, list) else texts

    @cached_property
    def added_system(self) -> str | None:
        """The system turn that the template writes when the data has none, or None. Reports must show it."""
        user, system = "\x02user\x03", "\x02system\x03"
        try:
            without = self.render([{"role": "user", "content": user}], add_generation_prompt=False)
            explicit = self.render(
                [{"role": "system", "content": system}, {"role": "user", "content": user}], add_generation_prompt=False
            )
        except InputError:  # a template that refuses a system turn does not write one
            return None
        if user not in without or user not in explicit or system not in explicit:
            return None
        before = without[: without.index(user)]
        head, _, tail = explicit[: explicit.index(user)].partition(system)
        wrote = head.removeprefix(self.special_tokens.get("bos_token") or "")
        if not (before.startswith(head) and before.endswith(tail)) or len(before) < len(head) + len(tail):
            return None
        added = before[len(head) : len(before) - len(tail)]
        return added if added or wrote.strip() else None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(v) for v in value]
    return value


def _read_folder(folder: Path) -> tuple[Any, dict[str, tuple[str, str]], dict[str, str]]:
    config_file = folder / "tokenizer_config.json"
    config: dict[str, Any] = {}
    if config_file.is_file():
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"not JSON: {error.msg}", file=config_file, line=error.lineno) from None
    given = config.get("chat_template")
    entries = {"default": given} if isinstance(given, str) else {e["name"]: e["template"] for e in given or []}
    named = {name: (source, config_file.name) for name, source in entries.items()}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[file.stem] = (file.read_text(encoding="utf-8"), file.name)
    own = folder / "chat_template.jinja"
    if own.is_file():
        named["default"] = (own.read_text(encoding="utf-8"), own.name)
    tokens = {key: config[key] for key in _SPECIAL if config.get(key)}
    return folder, named, {k: v["content"] if isinstance(v, dict) else v for k, v in tokens.items()}


def _read_tokenizer(tokenizer: Any) -> tuple[Any, dict[str, tuple[str, str]], dict[str, str]]:
    given = getattr(tokenizer, "chat_template", None)
    entries = {"default": given} if isinstance(given, str) else dict(given or {})
    named = {name: (source, "the tokenizer's own") for name, source in entries.items()}
    tokens = {key: str(getattr(tokenizer, key)) for key in _SPECIAL if getattr(tokenizer, key, None)}
    return getattr(tokenizer, "name_or_path", "") or "the tokenizer", named, tokens
