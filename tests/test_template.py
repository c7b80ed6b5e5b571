"""Chat templates: where they come from, and what reaches them (cases 05, 09 and 29)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optative.core.errors import InputError
from optative.generators.language.template import PLAIN, ChatTemplate
from tiny_models import CHATML, make_tokenizer

A = "{% for m in messages %}A<{{ m.content }}>{% endfor %}"
B = "{% for m in messages %}B<{{ m.content }}>{% endfor %}"
HI = [{"role": "user", "content": "hi"}]
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def folder_with(tmp_path: Path, config: object = None, jinja: str | None = None) -> Path:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": config, "eos_token": "</s>"}))
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "jinja", "right"),
    [(A, B, "B<hi>"), (A, None, "A<hi>"), (None, B, "B<hi>"), ([{"name": "default", "template": A}], None, "A<hi>")],
)
def test_the_template_file_wins(tmp_path, config, jinja, right):
    template = ChatTemplate.of(folder_with(tmp_path, config, jinja))
    assert template.render(HI, add_generation_prompt=True) == right


def test_a_model_without_template_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="template") as error:
        ChatTemplate.of(folder_with(tmp_path, []))
    assert str(tmp_path) in str(error.value)
    with pytest.raises(InputError, match="no default chat template"):
        ChatTemplate.of(make_tokenizer(None))
    plain = ChatTemplate.of(tmp_path, template="plain")
    assert plain.name == "plain"
    assert plain.source == PLAIN


def test_the_plain_template_ends_turns_with_the_models_end_token(tmp_path):
    plain = ChatTemplate.of(folder_with(tmp_path, []), template="plain")
    conversation = [{"role": "system", "content": "Be kind."}, *HI, {"role": "assistant", "content": "Hello."}]
    text = plain.render(conversation, add_generation_prompt=False)
    assert text == "Be kind.\n\nUser:\nhi\n\nAssistant:\nHello.</s>\n\n"
    assert text.startswith(plain.render(conversation[:-1], add_generation_prompt=True))


def test_named_templates(tmp_path):
    named = [{"name": "default", "template": A}, {"name": "tool_use", "template": B}]
    folder = folder_with(tmp_path, named)
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    template = ChatTemplate.of(folder)
    assert template.render(HI, add_generation_prompt=False) == "A<hi>"
    assert template.render(HI, add_generation_prompt=False, tools=[tool]) == "B<hi>"
    assert ChatTemplate.of(folder, template="tool_use").render(HI, add_generation_prompt=False) == "B<hi>"
    with pytest.raises(InputError, match="nearest is 'tool_use'"):
        ChatTemplate.of(folder, template="tool_us")


def test_a_template_can_be_given_as_file_or_source(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(B)
    for given in (str(file), B):
        template = ChatTemplate.of(folder_with(tmp_path, A), template=given)
        assert template.render(HI, add_generation_prompt=False) == "B<hi>"
        assert template.hash == ChatTemplate(B, "x").hash


def test_a_default_system_turn_is_found_and_reported():
    template = ChatTemplate(DEFAULT_SYSTEM, "case 09")
    assert template.added_system == "You are helpful."
    assert ChatTemplate(CHATML, "none").added_system is None
    assert ChatTemplate(PLAIN, "none", {"eos_token": "</s>"}).added_system is None
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    assert ChatTemplate(refuses, "none").added_system is None
    always = "<s><|system|>Today is Monday.\n"
    always += "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|end|>"
    always += "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    assert ChatTemplate(always, "always", {"bos_token": "<s>"}).added_system == ""


def test_keys_without_value_do_not_reach_the_template():
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls is defined %}[calls]{% endif %}"
        "{% if m.name is defined %}({{ m.name }}){% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    padded = [{"role": "user", "content": "Say hi.", "tool_calls": None, "name": None}]
    assert ChatTemplate(source, "case 05").render(padded, add_generation_prompt=True) == (
        "<|user|>Say hi.<|end|><|assistant|>"
    )
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": None}], "name": None}]
    assert ChatTemplate(source, "x").render(calls, add_generation_prompt=False) == "<|assistant|>[calls]<|end|>"


def test_a_refused_conversation_is_the_users_error():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", "strict")
    with pytest.raises(InputError, match="roles must alternate"):
        template.render(HI, add_generation_prompt=True)


def test_renders_as_transformers_does():
    tokenizer = make_tokenizer()
    template = ChatTemplate.of(tokenizer)
    conversation = [*HI, {"role": "assistant", "content": "  two spaces, ünïcode 🙂\n"}, *HI]
    for prompt in (True, False):
        theirs = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
        assert template.render(conversation, add_generation_prompt=prompt) == theirs


def test_shared_templates(shared):
    folder = shared / "cases"
    template = ChatTemplate((folder / "09-default-system.jinja").read_text(), "09")
    assert template.added_system == "You are helpful."
    null_padded = ChatTemplate((folder / "05-null-padded-messages.jinja").read_text(), "05")
    message = {"role": "user", "content": "Say hi.", "tool_calls": None, "name": None}
    assert null_padded.render([message], add_generation_prompt=True) == "<|user|>Say hi.<|end|><|assistant|>"
