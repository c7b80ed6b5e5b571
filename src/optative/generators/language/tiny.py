"""Small language models made on the spot: a tokenizer, a Llama of a given size, and its pretraining in minutes.

All that a loaded model can do, these can too: they are scored, sampled, adapted and trained on preferences by the same
functions, and `save` writes a folder for `load_language_model`. A document is a group (`packing`): its prompt, the
start token and perhaps a prefix, carries no loss; its text does. Documents lie side by side in packs and do not see one
another. A step is a fixed set of documents of about `tokens_per_step` tokens; its loss is the mean over its tokens.

Knows: documents as ids, steps by tokens. Does not know: where texts come from (`data.corpora`), losses on preferences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from optative.core.errors import InputError
from optative.core.files import read_jsonl
from optative.core.ids import content_hash
from optative.core.rng import seed_from, stream
from optative.generators.language import adapters
from optative.generators.language.model import LanguageModel
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.score import score_pack, summed
from optative.generators.language.template import PLAIN, ChatTemplate
from optative.generators.language.tokens import encode_apart
from optative.generators.language.trained import trained_parameters
from optative.generators.options import Tiny
from optative.training.engine import MicroResult, train
from optative.training.options import StepOptions

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
PACK_TOKENS = 1024  # of one forward: from 512 to 2048 equally fast on one core, and slower beyond
WEIGHT_DECAY = 0.033
CHECKPOINT_EVERY = 50


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) with a start, an end and a padding token.

    Every text comes back from its ids. Equal texts give equal files. Fewer merges than asked for are possible where the
    texts hold no more. Raises InputError for a vocabulary that has no room for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 259:
        raise InputError("no room for 256 bytes and 3 special tokens", field="vocabulary", found=vocabulary)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = PLAIN
    return tokenizer


def build(tiny: Tiny, tokenizer: Any, seed: int) -> LanguageModel:
    """A Llama (Touvron et al. 2023, arXiv:2302.13971) with fresh float32 weights and tied embeddings.

    Raises InputError when the tokenizer has more tokens than the model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if len(tokenizer) > tiny.vocabulary:
        raise InputError(
            "the tokenizer has more tokens than the model",
            field="vocabulary",
            found=len(tokenizer),
            expected=f"at most {tiny.vocabulary}",
        )
    config = LlamaConfig(
        vocab_size=tiny.vocabulary,
        hidden_size=tiny.hidden,
        intermediate_size=-(-tiny.hidden * 8 // 3 // 32) * 32,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        max_position_embeddings=tiny.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(seed, "tiny"))
        model = LlamaForCausalLM(config).eval()
    model.requires_grad_(False)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        template=ChatTemplate.of(tokenizer, "plain"),
        name="tiny",
        fingerprint=content_hash([tiny.model_dump(), tokenizer.backend_tokenizer.to_str(), seed]),
        dtype=torch.float32,
        dtype_reason="made here in float32",
        device=torch.device("cpu"),
        eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
        context_length=tiny.context,
    )


def save(lm: LanguageModel, folder: str | Path) -> Path:
    """Write model, tokenizer and template for `load_language_model`, whose fingerprint is then that of the weights."""
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return Path(folder)


def document(tokenizer: Any, text: str, prefix: str = "", *, most: int | None = None) -> Group:
    """A text to learn, behind the start token and a prefix that carries no loss, and with the end token.

    Prefix and text are encoded apart, so that the ids of the text do not depend on the prefix. `most`: of the text's
    tokens; one that is cut has no end token.
    """
    prompt = (tokenizer.bos_token_id, *encode_apart(tokenizer, prefix))
    ids = (*encode_apart(tokenizer, text), tokenizer.eos_token_id)
    return Group(prompt, (ids if most is None else ids[:most],))


@dataclass(frozen=True)
class Stage:
    """Part of a pretraining: so many steps over these documents, shuffled anew for each pass."""

    groups: Sequence[Group]
    steps: int


def pretrain(
    lm: LanguageModel,
    groups: Sequence[Group],
    *,
    steps: int,
    tokens_per_step: int,
    learning_rate: float,
    seed: int,
    folder: Path | None = None,
) -> list[float]:
    """Train all weights by maximum likelihood on documents; the loss of each step, in nats a token. See the stages."""
    return pretrain_stages(
        lm,
        [Stage(groups, steps)],
        tokens_per_step=tokens_per_step,
        learning_rate=learning_rate,
        seed=seed,
        folder=folder,
    )


def pretrain_stages(
    lm: LanguageModel,
    stages: Sequence[Stage],
    *,
    tokens_per_step: int,
    learning_rate: float,
    seed: int,
    folder: Path | None = None,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> list[float]:
    """Stages one after another under one optimizer and one schedule: nothing is warmed up again between them.

    The rate rises over 5% of the steps and falls along a cosine to a tenth of `learning_rate`. folder: for metrics and
    checkpoints, from which the same call goes on after a crash, bit-equal. on_step: see `training.engine.train`.
    Raises InputError when a stage has no documents, and for a model with an adapter, which would be trained instead.
    """
    if adapters.has_adapter(lm):
        raise InputError("pretraining moves all weights, and this model has an adapter", field="model", found=lm.name)
    groups = [group for stage in stages for group in stage.groups]
    steps, at = list[tuple[int, ...]](), 0
    for number, stage in enumerate(stages):
        own = _steps([g.num_tokens for g in stage.groups], stage.steps, tokens_per_step, (seed, "pretrain", number))
        steps += [tuple(at + i for i in step) for step in own]
        at += len(stage.groups)
    options = StepOptions(
        learning_rate=learning_rate,
        warmup_ratio=0.05,
        final_ratio=0.1,
        weight_decay=WEIGHT_DECAY,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    key = content_hash([lm.fingerprint, _hash(groups, steps), options.model_dump()])
    tokens = 1

    def before_step(index: int) -> None:
        nonlocal tokens
        tokens = sum(sum(groups[i].counted) for i in steps[index])

    def micro_batches(own: Sequence[int]) -> list[Pack]:
        return plan([groups[i] for i in own], PACK_TOKENS)

    def loss(pack: Pack, _: int) -> MicroResult:
        found = score_pack(lm, pack)
        assert found.logps is not None
        return MicroResult(-(found.logps * found.mask_N).sum() / tokens, {"num_tokens": (pack.num_tokens, 0.0)})

    with TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else Path(folder)
        lm.model.train().requires_grad_(True)
        try:
            train(
                trained_parameters(lm),
                steps,
                micro_batches,
                loss,
                options=options,
                key=key,
                journal_path=place / "metrics.jsonl",
                journal_start=0,
                checkpoints=place / "checkpoints",
                on_step=on_step,
                cost=lambda i: float(groups[i].num_tokens),
                before_step=before_step,
            )
        finally:
            lm.model.eval().requires_grad_(False)
        lm.fingerprint = key
        return [line["loss"] for line in read_jsonl(place / "metrics.jsonl")]


def mean_loss(lm: LanguageModel, groups: Sequence[Group]) -> float:
    """Nats a token over all tokens of the documents that carry loss."""
    logps = summed(lm, groups, token_budget=PACK_TOKENS)
    return -sum(map(sum, logps)) / sum(sum(group.counted) for group in groups)


def _hash(groups: Sequence[Group], steps: Sequence[Sequence[int]]) -> str:
    """Of the ids and masks of all documents and of what each step holds; canonical JSON of millions would be slow."""
    digest = hashlib.sha256()
    for group in groups:
        for ids in (group.prompt_ids, *group.completion_ids, *(group.masks or ())):
            digest.update(np.array([len(ids), *ids], dtype=np.int32).tobytes())
    for step in steps:
        digest.update(np.array([len(step), *step], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _steps(lengths: Sequence[int], steps: int, tokens_per_step: int, key: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    """Documents in keyed permutations, one pass after another, cut into steps of at least `tokens_per_step` tokens."""
    if steps and not lengths:
        raise InputError("nothing to train on", field="groups", found="no documents")
    waiting = chain.from_iterable(map(int, stream(*key, epoch).permutation(len(lengths))) for epoch in count())
    for _ in range(steps):
        step, tokens = list[int](), 0
        while tokens < tokens_per_step:
            step.append(next(waiting))
            tokens += lengths[step[-1]]
        yield tuple(step)
