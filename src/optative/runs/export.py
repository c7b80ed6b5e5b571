"""Weights for other tools: an adapter that PEFT loads and a merged model that Transformers loads, without optative.

Knows: PEFT's and Transformers' folder layouts. Does not know: how the weights came about.
A folder appears whole or not at all. Nothing in it names a path of this machine; the chat template of the training
travels with it. What is written is read back and compared with the model in memory before it appears.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from optative.core.errors import InputError, OptativeError
from optative.core.files import atomic_folder, read_json
from optative.generators.language.adapters import POLICY, has_adapter, merged, save_adapter, write_adapter
from optative.generators.language.load import load_language_model
from optative.generators.language.model import LanguageModel
from optative.generators.language.quiet import quiet

# Largest difference of logits that rounding in float32 explains, as a share of the largest logit.
ROUNDING = 1e-4
_BASE_AND_ADAPTER = "Name the base model, and give the run's adapter/ as --adapter."
_PROBE = "The river rises in the mountains. 1 + 1 = 2, and äöü are letters too.\n"


def export_adapter(lm: LanguageModel, folder: str | Path) -> None:
    """Write `folder`: the adapter in PEFT's layout, the tokenizer with the template of the training, and a card."""
    if not has_adapter(lm):
        raise InputError(f"{lm.name} has no adapter to export")
    with atomic_folder(folder) as temporary:
        _write_tokenizer(lm, temporary)
        write_adapter(lm, temporary)
        _write_card(lm, temporary, "peft", f"Adapter for {lm.name}")


def export_model(lm: LanguageModel, folder: str | Path) -> float:
    """Write `folder`: base and adapter merged, in float32; returns the largest difference of logits on one prompt.

    The difference is between the unmerged model in float32 and the written folder, read back by Transformers. A model
    that runs in bfloat16 is loaded again in float32 first, so that its base is not written out rounded. A head that the
    adapter changed is untied from the embedding. Raises OptativeError, and writes nothing, when the difference is
    larger than rounding explains.
    """
    import torch
    from transformers import AutoModelForCausalLM

    full = _in_float32(lm)
    ids = torch.tensor([_probe_ids(full)], device=full.device)
    training = full.model.training
    full.model.eval()
    with torch.no_grad():
        before = full.model(ids).logits
        with merged(full), atomic_folder(folder) as temporary, quiet():
            _write_merged(full, temporary)
            _write_tokenizer(full, temporary)
            _write_card(full, temporary, "transformers", f"{full.name}, steered")
            written = AutoModelForCausalLM.from_pretrained(temporary, dtype=torch.float32).to(full.device).eval()
            after = written(ids).logits
            difference = float((before - after).abs().max())
            if not difference <= ROUNDING * max(1.0, float(before.abs().max())):
                raise OptativeError(
                    f"the merged model differs from the one in memory by {difference:.2g} in its logits; "
                    f"nothing was written to {folder}"
                )
    full.model.train(training)
    return difference


def is_run(folder: str | Path) -> bool:
    """Whether a folder is laid out as a run: it has a manifest, or an adapter of its own, and is no model itself."""
    folder = Path(folder)
    own = (folder / "manifest.json").is_file() or (folder / "adapter" / "adapter_config.json").is_file()
    return own and not (folder / "config.json").is_file()


def open_run(folder: str | Path, *, dtype: str = "auto") -> LanguageModel:
    """The steered model of a finished run folder, on the base that its spec names."""
    folder = Path(folder)
    if not (folder / "adapter").exists() and (folder / "model" / "config.json").is_file():
        return load_language_model(str(folder / "model"), dtype=dtype)  # all weights were trained
    if not (folder / "adapter" / "adapter_config.json").is_file():
        found = "no run folder" if not (folder / "manifest.json").is_file() else "a run that is not finished"
        raise InputError(f"has no adapter/: {found}", file=folder)
    if not (folder / "resolved.json").is_file():
        raise InputError("the run does not say which model it began with", file=folder, hint=_BASE_AND_ADAPTER)
    options = read_json(folder / "resolved.json")["options"]
    return load_language_model(str(options.get("generator", options)["model"]), adapter=folder / "adapter", dtype=dtype)


def front_matter(lm: LanguageModel, library: str) -> str:
    """The YAML head of a model card. `base_model` is there only with a hub id: hubs refuse anything else."""
    import yaml

    head: dict[str, Any] = {"library_name": library, "tags": ["optative", "preference-alignment"]}
    if lm.hub_id is not None:
        head["base_model"] = lm.hub_id
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _write_card(lm: LanguageModel, folder: Path, library: str, title: str) -> None:
    words = " ".join(["Made with optative.", f"Base: {lm.name}, fingerprint {lm.fingerprint}.", *lm.notes])
    text = f"{front_matter(lm, library)}\n# {title}\n\n{words}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _in_float32(lm: LanguageModel) -> LanguageModel:
    import torch

    if lm.dtype is torch.float32:
        return lm
    adapter = None
    with tempfile.TemporaryDirectory() as temporary:
        if has_adapter(lm):
            adapter = Path(temporary) / "adapter"
            save_adapter(lm, adapter)
        full = load_language_model(
            lm.source, adapter=adapter, dtype="float32", template=lm.template.source, device=str(lm.device)
        )
    if full.fingerprint != lm.fingerprint:
        raise InputError("the base model has changed since it was loaded", file=lm.source)
    full.notes = lm.notes
    return full


def _write_merged(lm: LanguageModel, folder: Path) -> None:
    """The weights of a model whose adapter is merged at this moment, its config and its generation config."""
    import torch

    base = lm.model.get_base_model() if has_adapter(lm) else lm.model
    config = copy.deepcopy(base.config)
    config._name_or_path = lm.hub_id or lm.name
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if config.tie_word_embeddings and not torch.equal(_weight(head), _weight(embedding)):
        config.tie_word_embeddings = False
    with torch.device("meta"):
        plain = type(base)(config)
    plain.load_state_dict(_plain_state(base), strict=False, assign=True)
    plain.tie_weights()
    empty = [name for name, parameter in plain.named_parameters() if parameter.is_meta]
    assert not empty, f"no weights for {empty}"
    plain.generation_config = _generation_config(base, lm)
    plain.save_pretrained(folder)


def _plain_state(base: Any) -> dict[str, Any]:
    """The weights under the names that they have without PEFT; a layer trained as a whole takes its original's."""
    state = {}
    for name, tensor in base.state_dict().items():
        if (
            ".lora_" in name
            or ".original_module." in name
            or (".modules_to_save." in name and f".{POLICY}." not in name)
        ):
            continue
        state[name.replace(".base_layer.", ".").replace(f".modules_to_save.{POLICY}.", ".")] = tensor
    return state


def _weight(layer: Any) -> Any:
    """Of a layer as it acts: PEFT's wrappers hold the original beside the trained one."""
    layer = layer.modules_to_save[POLICY] if hasattr(layer, "modules_to_save") else layer
    return layer.base_layer.weight if hasattr(layer, "base_layer") else layer.weight


def _generation_config(base: Any, lm: LanguageModel) -> Any:
    config = copy.deepcopy(base.generation_config)
    config.eos_token_id, config.pad_token_id = list(lm.eos_ids), lm.pad_id
    if config.temperature is not None or config.top_p is not None or config.top_k is not None:
        # Some published models set a temperature without sampling; Transformers loads that but refuses to save it.
        config.do_sample = True
    return config


def _write_tokenizer(lm: LanguageModel, folder: Path) -> None:
    """The tokenizer with the template of the training: in a file of its own, and in the config for older tools."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tools = lm.template.tool_use
    tokenizer.chat_template = (
        lm.template.source if tools is None else {"default": lm.template.source, "tool_use": tools}
    )
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(lm.template.source, encoding="utf-8", newline="")
    file = folder / "tokenizer_config.json"
    config = read_json(file)
    for name in ("name_or_path", "is_local", "local_files_only"):
        config.pop(name, None)
    if tools is None:
        config["chat_template"] = lm.template.source
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _probe_ids(lm: LanguageModel) -> list[int]:
    """Ids for the comparison: any text will do, as long as the model knows some of it."""
    ids = lm.tokenizer.encode(_PROBE, add_special_tokens=False)[: lm.context_length]
    return ids or [0]
