"""Options of the kinds of feedback, and their names."""

from __future__ import annotations

from typing import Literal

from optative.core.config import Config, Field, Table

Unfinished = Literal["keep", "leave_out", "reject"]


class OnPolicy(Config):
    """The model's own answers, labelled by the objective's rules."""

    rounds: int = Field(
        2, ge=1, description="Walks of sample, label, select, train; the training prompts are split over them."
    )
    samples_per_prompt: int = Field(8, ge=2, description="Answers drawn for each prompt.")
    greedy: bool = Field(
        False,
        description="Judge the greedy answer to each prompt too, beside the samples: a small model turns in circles "
        "far more often there than in samples, and what is never judged is never unlearnt.",
    )
    pairs_per_prompt: int = Field(2, ge=1, description="At most so many pairs from one prompt.")
    select: Literal["best_worst", "above_below", "all"] = Field(
        "best_worst",
        description="best_worst: best against worst, then the next; above_below: right against wrong; all: every "
        "strict pair, widest gap first.",
    )
    unfinished: Unfinished = Field(
        "keep",
        description="What an answer cut at max_new_tokens is worth. keep: what the rules say of the part that is "
        "there; leave_out: it is in no pair; reject: it follows nothing and is never chosen.",
    )
    loops: Literal["keep", "lose"] = Field(
        "keep",
        description="What an answer that repeats itself is worth (more than half of its runs of four words were there "
        "before). keep: what the rules say; lose: less than any other answer, whether or not it was cut.",
    )
    max_kl: float | None = Field(
        None,
        gt=0,
        description="How far the rounds together may take the policy from the base, in nats a token of its own greedy "
        "answers to practice prompts, and each round in proportion; where one went further, only a part of its change "
        "is kept. Empty: no limit.",
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of the answers to be judged.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus of the sampling distribution.")
    top_k: int = Field(0, ge=0, description="Only the k likeliest tokens; 0 for all.")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer, in tokens.")


FEEDBACK: Table = {"on_policy": (OnPolicy, "optative.feedback.on_policy:judge")}
