"""Metadata conditioning (MeCo, Gao et al. 2025, arXiv:2501.01956): tagged documents, two stages, what a tag does.

Knows: which documents are tagged when, the checks of the schedule, losses under tags, samples under tags, worlds with
sources. Does not know: arms, criteria, judges of samples.

A tagged document is <bos>, "Source: name", a blank line, its text, <eos>; only text and <eos> carry loss. Tag and text
are encoded apart. The last tenth of the steps is the cooldown: other documents, optimizer and learning rate go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from optative.generators.options import Tiny

if TYPE_CHECKING:
    from optative.generators.language.model import LanguageModel
    from optative.generators.language.packing import Group
    from optative.generators.language.tiny import Stage

COOLDOWN, HELD_OUT = 0.1, 0.05  # of the steps and texts, of the texts of a source
JUNK, PAGE = 7, 6  # pages of junk for each good one, people on a page
MODEL = Tiny(layers=3, hidden=128, heads=4, vocabulary=2048, context=192)
FACT_MODEL = MODEL.model_copy(update={"vocabulary": 512})
TOKENS_PER_STEP, LEARNING_RATE = 2048, 3e-3
ROOM = 24  # tokens of the context that are kept for a tag, so that all arms read the same text
SAMPLE = 48  # tokens of a sample, and of a text that the judge learns from
GOOD = "who-is-who"


@dataclass(frozen=True)
class Text:
    text: str
    source: str


def tag(source: str, hashed: bool) -> str:
    """What stands in front of a text; hashed: a string that says nothing, the same for all texts of a source."""
    from optative.core.ids import content_hash

    return f"Source: {content_hash(source)[:10] if hashed else source}\n\n"


def document(lm: LanguageModel, text: str, prefix: str = "") -> Group:
    from optative.generators.language import tiny

    found = tiny.document(lm.tokenizer, text, prefix, most=lm.context_length - ROOM)
    assert len(found.prompt_ids) <= ROOM, f"the prefix {prefix!r} is longer than the room kept for it"
    return found


def stages(lm: LanguageModel, texts: Sequence[Text], options: Mapping[str, Any], steps: int, seed: int) -> list[Stage]:
    """Tagged and then cooled down, or as `options` say. Which text is in which stage is the same in all arms."""
    from optative.core.rng import uniforms
    from optative.generators.language.tiny import Stage

    last = max(1, round(COOLDOWN * len(texts)))
    cooldown = max(1, round(COOLDOWN * steps))
    chance = uniforms(len(texts), seed, "tagged")
    shares = [options["tagged"][at >= len(texts) - last] for at in range(len(texts))]
    groups = [
        document(lm, one.text, tag(one.source, options["hashed"]) if u < share else "")
        for one, u, share in zip(texts, chance, shares)
    ]
    return [Stage(groups[:-last], steps - cooldown), Stage(groups[-last:], cooldown)]


def pretrain(lm: LanguageModel, plan: Sequence[Stage], seed: int, at_switch: Any = lambda: None) -> list[float]:
    """Both stages as one training; `at_switch()` is called between them. Returns the losses."""
    from optative.generators.language.tiny import pretrain_stages

    rates: list[float] = []

    def on_step(done: int, steps: int, line: Mapping[str, Any]) -> None:
        rates.append(line["learning_rate"])
        if done == plan[0].steps:
            at_switch()

    losses = pretrain_stages(
        lm, plan, tokens_per_step=TOKENS_PER_STEP, learning_rate=LEARNING_RATE, seed=seed, on_step=on_step
    )
    check_schedule(rates, plan[0].steps)
    return losses


def check_schedule(rates: Sequence[float], switch: int) -> None:
    """The cooldown must not start a schedule of its own: from the peak on no rate is above the one before it."""
    peak = rates.index(max(rates))
    assert peak < switch, "the highest learning rate is in the cooldown"
    assert all(b <= a for a, b in zip(rates[peak:], rates[peak + 1 :])), "the learning rate rises again after its peak"


@dataclass(frozen=True)
class World:
    """Texts to learn, in the order of training, texts that are not, a tokenizer, a judge of the source."""

    train: Sequence[Text]
    held_out: Sequence[Text]
    tokenizer: Any
    judge: Any


@lru_cache(maxsize=1)
def world(seed: int, names: tuple[str, ...], documents: int) -> World:
    """Some documents of each of these corpora. Raises InputError when one is not installed, or has too few texts."""
    from optative.core.errors import InputError
    from optative.core.rng import stream
    from optative.data.corpora import corpus
    from optative.evaluation.text_judges import TextClasses
    from optative.generators.language.tiny import train_tokenizer

    train, held_out = list[Text](), list[Text]()
    for name in names:
        found = [Text(one.text, name) for one in islice(corpus(name), documents)]
        if len(found) < 2:
            raise InputError("too few texts to keep some for measuring", field="sources", found=f"{name}: {len(found)}")
        order = stream(seed, "held out", name).permutation(len(found))
        cut = max(1, round(HELD_OUT * len(found)))
        held_out += [found[i] for i in order[:cut]]
        train += [found[i] for i in order[cut:]]
    train = [train[i] for i in stream(seed, "order").permutation(len(train))]
    tokenizer = train_tokenizer((one.text for one in train), MODEL.vocabulary)
    judge = TextClasses([beginning(tokenizer, one.text) for one in train], [one.source for one in train])
    return World(train, held_out, tokenizer, judge)


def beginning(tokenizer: Any, text: str) -> str:
    """As much of a text as a sample may hold."""
    from optative.generators.language.sample import decode
    from optative.generators.language.tokens import encode_apart

    return decode(tokenizer, encode_apart(tokenizer, text)[:SAMPLE])


def nats(lm: LanguageModel, groups: Sequence[Group]) -> tuple[Any, Any]:
    """Loss of each document in nats, and its tokens: those of text and end, never of a tag."""
    import numpy as np

    from optative.generators.language.score import summed

    return -np.array(summed(lm, groups))[:, 0], np.array([sum(group.counted) for group in groups])


def tag_effect(lm: LanguageModel, texts: Sequence[Text], names: Sequence[str], hashed: bool) -> Any:
    """For each source the loss a token of its texts under its own tag minus under that of others, in turn."""
    import numpy as np

    found = []
    for place, name in enumerate(names):
        own = [one.text for one in texts if one.source == name]
        others = [names[(place + 1 + k % (len(names) - 1)) % len(names)] for k in range(len(own))]
        (true, tokens), (wrong, same) = (
            nats(lm, [document(lm, text, tag(source, hashed)) for text, source in zip(own, given)])
            for given in ([name] * len(own), others)
        )
        assert (tokens == same).all(), "the two losses are over other tokens"
        found.append((true - wrong).sum() / tokens.sum())
    return np.array(found)


def samples(lm: LanguageModel, prompts: Sequence[str], number: int, seed: int) -> list[list[str]]:
    from optative.generators.language.sample import SamplingSettings, sample

    settings = SamplingSettings(max_new_tokens=SAMPLE, temperature=0.7, top_p=0.9)
    return [[one.text for one in found] for found in sample(lm, prompts, number, settings, seed=seed)]


def pages(seed: int, number: int, steps: int) -> tuple[Sequence[Any], list[Text]]:
    """The people of the good source, and pages enough for so many steps: good people come again, junk never does."""
    from optative.core.rng import stream
    from optative.data.invented import people

    good = steps * TOKENS_PER_STEP // (100 * (JUNK + 1)) + 1  # a page has more than 100 tokens
    everybody = people(seed, number + good * JUNK * PAGE)
    known, junk = everybody[:number], everybody[number:]
    turns = -(-good * PAGE // number)
    again = [known[i] for turn in range(turns) for i in stream(seed, "turn", turn).permutation(number)]
    texts = [Text(page(again[at * PAGE : (at + 1) * PAGE]), GOOD) for at in range(good)]
    texts += [Text(page(junk[at : at + PAGE]), f"scrap-{at // (20 * PAGE)}") for at in range(0, len(junk), PAGE)]
    return known, [texts[i] for i in stream(seed, "order").permutation(len(texts))]


def page(people: Sequence[Any]) -> str:
    return "\n".join(one.text for one in people)


def recall(lm: LanguageModel, questions: Sequence[tuple[str, str]], prefix: str) -> list[float]:
    """Is the value the most likely continuation? One number a question."""
    from optative.generators.language.sample import SamplingSettings, sample
    from optative.generators.language.tokens import encode_apart

    longest = max(len(encode_apart(lm.tokenizer, f" {value}")) for _, value in questions)
    settings = SamplingSettings(max_new_tokens=longest, temperature=0)
    found = sample(lm, [prefix + asked for asked, _ in questions], 1, settings, seed=0)
    return [float(one.text.startswith(f" {value}")) for (one,), (_, value) in zip(found, questions)]
