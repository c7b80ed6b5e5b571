"""The choice of the number format: measured, explained, without side effects."""

from __future__ import annotations

import time

import pytest
import torch

from optative.core.errors import InputError
from optative.generators.language import dtype as module
from optative.generators.language.dtype import choose_dtype, measured_gain

CPU = torch.device("cpu")


def test_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measured_gain", lambda *_: pytest.fail("measured"))
    assert choose_dtype("float32", CPU) == (torch.float32, "float32 as asked")
    assert choose_dtype("bfloat16", CPU) == (torch.bfloat16, "bfloat16 as asked")
    with pytest.raises(InputError, match=r"unknown dtype 'bf16'; the nearest is 'bfloat16'"):
        choose_dtype("bf16", CPU)


@pytest.mark.parametrize(
    ("gain", "chosen", "words"),
    [
        (3.0, torch.bfloat16, "bfloat16 is 3.0 times as fast as float32 on this CPU"),
        (1.1, torch.float32, "it runs at 1.10 times the speed of float32"),
        (0.2, torch.float32, "no fast bfloat16: it runs at 0.20 times the speed"),
    ],
)
def test_the_reason_carries_the_measured_ratio(
    monkeypatch: pytest.MonkeyPatch, gain: float, chosen: torch.dtype, words: str
) -> None:
    monkeypatch.setattr(module, "measured_gain", lambda *_: gain)
    dtype, reason = choose_dtype("auto", CPU)
    assert dtype is chosen
    assert words in reason


def test_the_probe_is_short_measured_once_and_draws_no_random_numbers() -> None:
    measured_gain.cache_clear()
    before = torch.get_rng_state()
    begin = time.process_time()
    first = choose_dtype("auto", CPU, hidden=64, intermediate=96)
    assert time.process_time() - begin < 2
    assert torch.equal(before, torch.get_rng_state())
    assert choose_dtype("auto", CPU, hidden=64, intermediate=96) == first
    assert measured_gain.cache_info().misses == 1
    assert measured_gain(64, 96, torch.get_num_threads()) > 0
