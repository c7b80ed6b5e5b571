"""The losses by name: their options, what they need, what they compute, when to use them. Without torch.

Knows: names, defaults, limits, formulas in words. Does not know: tensors (the functions are imported when they are
looked up), trainers.
Every keyword number of a loss's function is a field of its Config with the same name. The rest are common options,
and a loss has only those that act on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import field_validator, model_validator

from optative.core.config import Config, Field, Table
from optative.core.errors import unknown
from optative.training.options import StepOptions

Kind = Literal["pair", "completion", "list", "any"]
TOKEN_BUDGET = 768


class Preference(StepOptions):
    """What every loss has: how steps are made and when they are measured."""

    token_budget: Literal["auto"] | Annotated[int, Field(ge=16)] = Field(
        TOKEN_BUDGET,
        description="Tokens of one packed forward; a matter of speed and memory only. auto: the packing of each step "
        "that takes the least time, by what packs of several sizes are measured to take; kept in the run.",
    )
    eval_every: int = Field(
        0, ge=0, description="Steps between measurements on held-out units; 0: only at the end of a round."
    )

    @property
    def scoring_budget(self) -> int:
        """Tokens of a pack where no gradient is taken."""
        return TOKEN_BUDGET if self.token_budget == "auto" else self.token_budget


class Anchored(Config):
    """Losses that compare with a reference policy."""

    reference_every: int = Field(
        0, ge=0, description="Steps between moves of the reference towards the policy (TR-DPO); 0: it stays."
    )
    reference_mix: float = Field(
        0.6, gt=0, le=1, description="Share of the policy in the moved reference (TR-DPO); 1 replaces it."
    )

    @model_validator(mode="after")
    def _mix_acts(self) -> Anchored:
        if not self.reference_every and self.reference_mix != 0.6:
            raise ValueError("reference_mix cannot act: the reference does not move while reference_every is 0")
        return self


class KeepsChosen(Config):
    """Losses on pairs, which often need help to keep the chosen answer likely."""

    nll_weight: float = Field(
        0.0, ge=0, description="Weight of the per-token NLL of the chosen answer (RPO); keeps its likelihood up."
    )


class Offset(Config):
    """Losses that ask for a difference of rewards, so that it can depend on the strength of the preference."""

    margin_per_strength: float = Field(
        0.0, ge=0, description="Offset of the implicit reward difference for each unit of preference strength (ODPO)."
    )


class Weighted(Config):
    """Losses whose units can be weighted one by one."""

    weighting: Literal["none", "wpo"] = Field(
        "none", description="wpo: a unit counts by how likely the policy itself would write its answers."
    )


class LengthAware(Config):
    """Losses on pairs with a reference; their log-probabilities can be made less sensitive to length."""

    length_desensitise: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of tokens beyond the shorter answer's length (LD-DPO); 1: as all others.",
    )


class Smoothed(Config):
    """Losses that can allow for labels that are wrong."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of labels taken to be flipped, on top of each unit's own confidence."
    )


class Divergent(Config):
    """Losses of a difference of scores, one score for each answer."""

    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl", description="How distance from the reference is counted; it decides the score of a log-ratio."
    )
    divergence_alpha: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Of alpha_divergence: towards 0 like reverse_kl, towards 1 like forward_kl (TRL's is 1 minus it).",
    )

    @model_validator(mode="after")
    def _alpha_acts(self) -> Divergent:
        if self.divergence != "alpha_divergence" and self.divergence_alpha != 0.5:
            raise ValueError(f"divergence_alpha cannot act with divergence {self.divergence}")
        return self


class PairOptions(KeepsChosen, Preference):
    """Common to all losses on pairs."""


class AnchoredPair(LengthAware, Anchored, PairOptions):
    """Common to losses on pairs with a reference."""


class DPO(Divergent, Smoothed, Offset, Weighted, AnchoredPair):
    """Direct preference optimisation: the starting policy is the reference."""

    beta: float = Field(
        0.1, gt=0, description="Pull towards the reference; larger stays closer. Paper: 0.1, and 0.5 for TL;DR."
    )


class Hinge(Divergent, Smoothed, Offset, Weighted, AnchoredPair):
    """A pair stops counting once its margin is reached."""

    beta: float = Field(0.1, gt=0, description="The margin to reach is 1 / beta nats.")


class IPO(Divergent, Smoothed, Weighted, AnchoredPair):
    """Identity preference optimisation: a fixed margin per token is aimed at, never more."""

    beta: float = Field(0.1, gt=0, description="The paper's tau; the margin aimed at is 1 / (2 beta) nats per token.")


class EXO(Divergent, Weighted, AnchoredPair):
    """Reverse KL from the policy's preference to the label's."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")
    label_smoothing: float = Field(
        1e-3, gt=0, lt=0.5, description="Probability that the label gives to the rejected answer; 0 would be infinite."
    )


class NCA(Weighted, AnchoredPair):
    """Noise contrastive alignment for two answers."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")


class Robust(Divergent, Weighted, AnchoredPair):
    """DPO made unbiased under a known share of flipped labels."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")
    label_smoothing: float = Field(
        0.1, gt=0, lt=0.5, description="Share of flipped labels in the data; 0 would be plain DPO."
    )


class BCOPair(Weighted, AnchoredPair):
    """A binary classifier of each answer for itself, without a reward shift."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")


class SPPO(Weighted, AnchoredPair):
    """Self-play preference optimisation."""

    beta: float = Field(
        1e-3, gt=0, description="1 / eta of the paper (eta = 1000); the winner's log-ratio is drawn to 0.5 / beta."
    )


class APO(Weighted, AnchoredPair):
    """Anchored preference optimisation."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")


class DiscoPOP(Divergent, Weighted, AnchoredPair):
    """A blend of the logistic and the exponential loss that was found by search."""

    beta: float = Field(0.05, gt=0, description="Pull towards the reference; larger stays closer. Paper: 0.05.")
    tau: float = Field(0.05, gt=0, le=1, description="Width of the blend. Paper: 0.05; above 1 the loss has no bound.")


class SigmoidNorm(Divergent, Smoothed, Weighted, AnchoredPair):
    """DPO on log-ratios per token."""

    beta: float = Field(5.0, gt=0, description="Pull towards the reference; log-ratios are per token. Tulu 3: 5.")


class GammaDPO(Smoothed, Offset, Weighted, AnchoredPair):
    """DPO with a chosen share of the reference's own preference."""

    beta: float = Field(0.1, gt=0, description="Scale of the difference of log-probabilities.")
    gamma: float = Field(
        0.5, ge=0, description="Share of the reference's ranking in the target: 1 is DPO, 0 ignores the reference."
    )


class AOT(Smoothed, AnchoredPair):
    """Alignment by optimal transport: whole distributions of rewards are ordered, not single pairs."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")

    @field_validator("units_per_step")
    @classmethod
    def _something_to_sort(cls, units: int) -> int:
        if units < 2:
            raise ValueError("a step of one unit has nothing to sort; use at least 2 (the paper's point is many)")
        return units


class RaoKupper(Weighted, AnchoredPair):
    """DPO that learns from ties, in the Rao-Kupper model."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")
    nu: float = Field(3.0, gt=1, description="How usual ties are; 3: equal answers tie half of the time.")


class Davidson(Weighted, AnchoredPair):
    """DPO that learns from ties, in the Davidson model."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")
    nu: float = Field(1.0, gt=0, description="How usual ties are; 1: equal answers tie half of the time.")


class SimPO(Smoothed, Offset, Weighted, PairOptions):
    """The average log-probability as the reward: no reference, no advantage of length."""

    beta: float = Field(2.0, gt=0, description="Scale of the log-probabilities per token. Paper: 2 to 2.5.")
    gamma: float = Field(1.0, ge=0, description="Reward difference to exceed. Paper: 0.25 to 0.75 of beta.")


class AlphaPO(Smoothed, Offset, Weighted, PairOptions):
    """SimPO with a reward of another shape."""

    beta: float = Field(2.0, gt=0, description="Scale of the rewards.")
    gamma: float = Field(1.0, ge=0, description="Reward difference to exceed.")
    alpha: float = Field(
        0.25, description="Shape of the reward: above 0 unlikely answers weigh more, below 0 less; 0 would be SimPO."
    )

    @field_validator("alpha")
    @classmethod
    def _not_simpo(cls, alpha: float) -> float:
        if alpha == 0:
            raise ValueError("alpha = 0 is SimPO; use that name")
        return alpha


class ORPO(Smoothed, Weighted, PairOptions):
    """Supervised training on the chosen answer with a penalty on the odds of the rejected one."""

    beta: float = Field(0.1, gt=0, description="Weight of the odds ratio; the paper's lambda (0.1).")
    nll_weight: float = Field(1.0, ge=0, description="Weight of the per-token NLL of the chosen answer. Paper: 1.")


class CPO(Smoothed, Offset, Weighted, PairOptions):
    """Contrastive preference optimisation: DPO with a uniform reference, and the chosen answer kept likely."""

    beta: float = Field(0.1, gt=0, description="Scale of the difference of log-probabilities.")
    nll_weight: float = Field(1.0, ge=0, description="Weight of the per-token NLL of the chosen answer. Paper: 1.")


class KTO(Weighted, Anchored, Preference):
    """Kahneman-Tversky optimisation: answers that are each right or wrong for themselves."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")
    desirable_weight: float = Field(
        1.0, gt=0, description="Weight of good answers; weight x count should be about the same for good and bad ones."
    )
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of bad answers.")

    @field_validator("units_per_step")
    @classmethod
    def _others_to_compare_with(cls, units: int) -> int:
        if units < 2:
            raise ValueError("the KL estimate pairs prompts with answers of other units of the step; use at least 2")
        return units


class APOZeroUnpaired(Weighted, Anchored, Preference):
    """Anchored preference optimisation of single answers."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")


class SFT(Preference):
    """Supervised training on completions."""


class PlackettLuce(Anchored, Preference):
    """DPO on ranked lists."""

    beta: float = Field(0.1, gt=0, description="Pull towards the reference; larger stays closer.")
    places: int = Field(
        0,
        ge=0,
        description="Learn only the first places of a list; 0: all of them, 1: only which is best (S-DPO).",
    )


class Mixture(Offset, Weighted, LengthAware, Anchored, PairOptions):
    """A weighted sum of losses, each on the records that it can use."""

    terms: tuple[dict[str, dict[str, Any]], ...] = Field(
        ...,
        min_length=1,
        description="A list of `name: {weight: ..., and the options of that loss}`; the weight is 1 when left out. The "
        "NLL of the chosen answer is nll_weight.",
    )

    @field_validator("terms")
    @classmethod
    def _complete(cls, terms: tuple[dict[str, dict[str, Any]], ...]) -> tuple[dict[str, dict[str, Any]], ...]:
        return tuple(_complete_term(term) for term in terms)

    @model_validator(mode="after")
    def _common_options_act(self) -> Mixture:
        configs = [LOSSES[name].config for term in self.terms for name in term]
        for field, mixin in _ONLY_WITH.items():
            # These two change what all terms see: a weight would fall on the wrong unit of a sorted step.
            able = all if field in ("weighting", "length_desensitise") else any
            if getattr(self, field) != type(self).model_fields[field].default and not able(
                issubclass(config, mixin) for config in configs
            ):
                raise ValueError(f"{field} cannot act on these terms")
        for name, _, numbers in self.parts:
            LOSSES[name].config.model_validate({**numbers, "units_per_step": self.units_per_step})
        return self

    @property
    def parts(self) -> list[tuple[str, float, dict[str, Any]]]:
        """Name, weight and numbers of each term."""
        return [
            (name, options["weight"], {field: value for field, value in options.items() if field != "weight"})
            for term in self.terms
            for name, options in term.items()
        ]


class Loss(NamedTuple):
    """What is known of a loss without importing it."""

    config: type[Preference]
    function: str  # "module:function"; none of a mixture, which is its terms
    kind: Kind
    formula: str
    when: str
    source: str
    coupled: bool = False  # the value of a unit depends on all units of its step
    records: str = ""  # what is learnt from, in words, where the kind does not say it well

    @property
    def reference(self) -> bool:
        """Does it compare with a reference policy? (A mixture does when one of its terms does.)"""
        return issubclass(self.config, Anchored)

    @property
    def needs(self) -> str:
        """Records, reference and step, in words."""
        words = [self.records or _RECORDS[self.kind]]
        if self.config is Mixture:
            words.append("a reference if one of its terms does")
        elif self.reference:
            words.append("a reference")
        return ", ".join(words + (["steps of at least 2 units"] if self.coupled or self.config is KTO else []))


_RECORDS: dict[Kind, str] = {
    "pair": "pairs",
    "completion": "answers marked good or bad",
    "list": "ranked lists",
    "any": "what its terms learn from",
}


_AT = "optative.optimizers.losses."

LEGEND = (
    "lw, ll: summed log-probabilities of the chosen and the rejected answer; lw_ref, ll_ref: the same under the "
    "reference; |w|, |l|: their tokens; cw = lw - lw_ref, cl = ll - ll_ref; s: the score of a log-ratio, s(c) = c "
    "unless `divergence` says otherwise; D = s(cw) - s(cl); b: beta; e: label_smoothing; sig, logsig: the logistic "
    "function and its logarithm; l, c: the log-probability and the log-ratio of one answer y."
)

LOSSES: dict[str, Loss] = {
    "dpo": Loss(
        DPO,
        _AT + "pairs:dpo",
        "pair",
        "-logsig(b D - margin)",
        "The first to try: pairs, and a model that answers sensibly already.",
        "Rafailov et al. 2023, arXiv:2305.18290, eq. 7",
    ),
    "hinge": Loss(
        Hinge,
        _AT + "pairs:hinge",
        "pair",
        "max(0, 1 - (b D - margin))",
        "Clean labels; pairs that are learnt should no longer pull.",
        "Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425, with log-ratios as in RSO, arXiv:2309.06657",
    ),
    "ipo": Loss(
        IPO,
        _AT + "pairs:ipo",
        "pair",
        "(s(cw) / |w| - s(cl) / |l| - 1 / (2 b))^2",
        "Few or near-deterministic labels on which DPO overfits.",
        "Azar et al. 2023, arXiv:2310.12036, eq. 17, per token",
    ),
    "exo_pair": Loss(
        EXO,
        _AT + "pairs:exo_pair",
        "pair",
        "q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e), q = sig(b D)",
        "The policy should settle on what is best instead of covering all that is good.",
        "Ji et al. 2024, arXiv:2402.00856, eq. 16",
    ),
    "nca_pair": Loss(
        NCA,
        _AT + "pairs:nca_pair",
        "pair",
        "-logsig(b cw) - 0.5 logsig(-b cw) - 0.5 logsig(-b cl)",
        "The chosen answer's likelihood falls with DPO; reasoning and code.",
        "Chen et al. 2024, arXiv:2402.05369, for two answers with hard labels",
    ),
    "robust": Loss(
        Robust,
        _AT + "pairs:robust",
        "pair",
        "(-(1 - e) logsig(b D) + e logsig(-b D)) / (1 - 2 e)",
        "A known share of the labels is flipped at random.",
        "Chowdhury et al. 2024 (rDPO), arXiv:2403.00409",
    ),
    "bco_pair": Loss(
        BCOPair,
        _AT + "pairs:bco_pair",
        "pair",
        "-logsig(b cw) - logsig(-b cl)",
        "Each side should move for itself; a term of mixtures.",
        "Jung et al. 2024, arXiv:2404.04656, without the reward shift",
    ),
    "sppo": Loss(
        SPPO,
        _AT + "pairs:sppo",
        "pair",
        "(cw - (p - 0.5) / b)^2 + (cl - (0.5 - p) / b)^2, p: confidence that the chosen answer wins",
        "Rounds on the policy's own answers, with win probabilities from a judge.",
        "Wu et al. 2024, arXiv:2405.00675, eq. 4.7",
    ),
    "sppo_hard": Loss(
        SPPO,
        _AT + "pairs:sppo_hard",
        "pair",
        "(cw - 0.5 / b)^2 + (cl + 0.5 / b)^2",
        "As sppo, where only the winner is known.",
        "Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with probabilities 1 and 0",
    ),
    "apo_zero": Loss(
        APO,
        _AT + "pairs:apo_zero",
        "pair",
        "1 - sig(b cw) + sig(b cl)",
        "The chosen answers are better than what the model writes.",
        "D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7",
    ),
    "apo_down": Loss(
        APO,
        _AT + "pairs:apo_down",
        "pair",
        "sig(b cw) + 1 - sig(b (cw - cl))",
        "The model writes better than the chosen answers.",
        "D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8",
    ),
    "discopop": Loss(
        DiscoPOP,
        _AT + "pairs:discopop",
        "pair",
        "-(1 - m) logsig(b D) + m exp(-b D), m = sig(b D / tau)",
        "An alternative to DPO when a sweep over losses is affordable; its slope at 0 points the wrong way.",
        "Lu et al. 2024, arXiv:2406.08414, eq. 5",
    ),
    "sigmoid_norm": Loss(
        SigmoidNorm,
        _AT + "pairs:sigmoid_norm",
        "pair",
        "-logsig(b (s(cw) / |w| - s(cl) / |l|))",
        "Answers grow longer with DPO.",
        "Lambert et al. 2024 (Tulu 3), arXiv:2411.15124",
    ),
    "gamma_dpo": Loss(
        GammaDPO,
        _AT + "pairs:gamma_dpo",
        "pair",
        "-logsig(b ((lw - ll) + gamma (ll_ref - lw_ref)) - margin)",
        "The reference ranks many pairs wrong and holds DPO back.",
        "Chen et al. 2024, arXiv:2405.19534, appendix",
    ),
    "rao_kupper": Loss(
        RaoKupper,
        _AT + "ties:rao_kupper",
        "pair",
        "decided: -logsig(b D - log nu); tied: -log(nu^2 - 1) - logsig(b D - log nu) - logsig(-b D - log nu)",
        "Many pairs are ties that mean something.",
        "Chen et al. 2024, arXiv:2409.17431, after Rao and Kupper 1967",
        records="pairs, also tied ones",
    ),
    "davidson": Loss(
        Davidson,
        _AT + "ties:davidson",
        "pair",
        "decided: log(1 + exp(-d) + 2 nu exp(-d / 2)), d = b D; tied: the same + d / 2 - log(2 nu)",
        "As rao_kupper; ties fade more slowly as answers differ.",
        "Chen et al. 2024, arXiv:2409.17431, after Davidson 1970",
        records="pairs, also tied ones",
    ),
    "aot": Loss(
        AOT,
        _AT + "coupled:aot",
        "pair",
        "-logsig(b (sorted(lw - ll) - sorted(lw_ref - ll_ref))), sorted over the step",
        "Large steps; the policy's margins should be larger than the reference's as a whole.",
        "Melnyk et al. 2024, arXiv:2406.05882",
        coupled=True,
    ),
    "aot_unpaired": Loss(
        AOT,
        _AT + "coupled:aot_unpaired",
        "pair",
        "-logsig(b (sorted(cw) - sorted(cl))), sorted over the step",
        "As aot, where which rejected answer belongs to which chosen one says little.",
        "Melnyk et al. 2024, arXiv:2406.05882",
        coupled=True,
    ),
    "simpo": Loss(
        SimPO,
        _AT + "reference_free:simpo",
        "pair",
        "-logsig(b (lw / |w| - ll / |l|) - gamma - margin)",
        "No memory or time for a reference; lengths of chosen and rejected differ.",
        "Meng et al. 2024, arXiv:2405.14734, eq. 6",
    ),
    "alphapo": Loss(
        AlphaPO,
        _AT + "reference_free:alphapo",
        "pair",
        "-logsig(b (r(lw / |w|) - r(ll / |l|)) - gamma - margin), r(x) = (1 - exp(-alpha x)) / alpha",
        "SimPO pushes likelihoods down too far, or not enough.",
        "Gupta et al. 2025, arXiv:2501.03884",
    ),
    "orpo": Loss(
        ORPO,
        _AT + "reference_free:orpo",
        "pair",
        "-b logsig(o(lw / |w|) - o(ll / |l|)) + nll_weight NLL(chosen), o(x) = x - log(1 - exp(x))",
        "From a base model in one go: supervised and preference training together.",
        "Hong et al. 2024, arXiv:2403.07691, eqs. 4 and 7",
    ),
    "cpo": Loss(
        CPO,
        _AT + "reference_free:cpo",
        "pair",
        "-logsig(b (lw - ll) - margin) + nll_weight NLL(chosen)",
        "Translation and other tasks with a right answer; no reference.",
        "Xu et al. 2024, arXiv:2401.08417, eq. 3 and its NLL term",
    ),
    "kto": Loss(
        KTO,
        _AT + "unpaired:kto",
        "completion",
        "good: w_d (1 - sig(b (c - kl))); bad: w_u (1 - sig(b (kl - c))); kl: mean c of mismatched answers, >= 0",
        "Single answers with thumbs up or down, even very unequal in number.",
        "Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7",
    ),
    "apo_zero_unpaired": Loss(
        APOZeroUnpaired,
        _AT + "unpaired:apo_zero_unpaired",
        "completion",
        "good: 1 - sig(b c); bad: sig(b c)",
        "As kto, without the KL estimate: any number of units in a step.",
        "D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, one side for each answer",
    ),
    "sft": Loss(
        SFT,
        _AT + "supervised:nll",
        "completion",
        "-l / |y|",
        "Good answers only; before any preference training of a base model.",
        "maximum likelihood, per token of each answer",
        records="good answers",
    ),
    "plackett_luce": Loss(
        PlackettLuce,
        _AT + "listwise:plackett_luce",
        "list",
        "sum over i of log(sum over j not better than i of exp(b c_j)) - b c_i",
        "Rankings of three or more answers to a prompt.",
        "Rafailov et al. 2023, arXiv:2305.18290, appendix A.3; ties as in Breslow 1974",
    ),
    "mixture": Loss(
        Mixture,
        "",
        "any",
        "sum of weight x loss over the terms that the record suits",
        "One loss alone does not do it, as in MPO (dpo 0.8, bco_pair 0.2, nll_weight 1), or records of several kinds: "
        "dpo, kto and plackett_luce.",
        "Wang et al. 2024 (MPO), arXiv:2411.10442",
    ),
}

# Names of the field that are settings of the losses above.
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "cdpo": ("dpo", {"label_smoothing": 0.1}, "conservative DPO: Mitchell 2023, eq. 3"),
    "f_dpo": ("dpo", {"divergence": "js_divergence"}, "other divergences: Wang et al. 2023, arXiv:2309.16240, table 1"),
    "ld_dpo": ("dpo", {"length_desensitise": 0.5}, "Liu et al. 2024, arXiv:2409.06411"),
    "mpo": (
        "mixture",
        {"terms": [{"dpo": {"weight": 0.8}}, {"bco_pair": {"weight": 0.2}}], "nll_weight": 1.0},
        "Wang et al. 2024, arXiv:2411.10442",
    ),
    "odpo": ("dpo", {"margin_per_strength": 1.0}, "DPO with an offset: Amini et al. 2024, arXiv:2402.10571, eq. 5"),
    "rdpo": ("robust", {}, "Chowdhury et al. 2024, arXiv:2403.00409"),
    "rpo": ("dpo", {"nll_weight": 1.0}, "Pang et al. 2024, arXiv:2404.19733, eq. 1"),
    "s_dpo": ("plackett_luce", {"places": 1}, "softmax DPO: Chen et al. 2024, arXiv:2406.09215"),
    "sigmoid": ("dpo", {}, "DPO's name in other programs"),
    "slic": ("hinge", {}, "Zhao et al. 2023, arXiv:2305.10425"),
    "tr_dpo": ("dpo", {"reference_every": 512}, "Gorbatovski et al. 2024, arXiv:2404.09656"),
    "wpo": ("dpo", {"weighting": "wpo"}, "Zhou et al. 2024, arXiv:2406.11827"),
}

OPTIMIZERS: Table = {
    name: (loss.config, "optative.optimizers.preference:train_preferences") for name, loss in LOSSES.items()
}

_COMMON = (Preference, Anchored, KeepsChosen, Offset, Weighted, LengthAware)
_ONLY_WITH: Mapping[str, type[Config]] = {
    "reference_every": Anchored,
    "length_desensitise": LengthAware,
    "margin_per_strength": Offset,
    "weighting": Weighted,
}


def own_fields(config: type[Preference]) -> list[str]:
    """The options that are this loss's alone; these, and no others, are the keyword numbers of its function.

    >>> own_fields(SimPO)
    ['label_smoothing', 'beta', 'gamma']
    """
    common = {name for mixin in _COMMON for name in mixin.model_fields}
    return [name for name in config.model_fields if name not in common]


def _complete_term(term: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A term with its weight and all of its loss's own options."""
    losses = [name for name in LOSSES if name != "mixture"]
    if len(term) != 1:
        raise ValueError(f"a term has exactly one name, found {sorted(term)}")
    ((name, given),) = term.items()
    if name not in losses:
        raise ValueError(unknown("loss", name, losses))
    config = LOSSES[name].config
    own = own_fields(config)
    for field in given:
        if field not in ("weight", *own):
            raise ValueError(f"{name}: {unknown('option of a term', field, ['weight', *own])}")
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ValueError(f"{name}: the weight must be a number above 0, found {weight!r}")
    checked = config.model_validate({field: value for field, value in given.items() if field != "weight"})
    return {name: {"weight": float(weight), **{field: getattr(checked, field) for field in own}}}
