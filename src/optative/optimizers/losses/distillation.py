"""Distillation from two frozen teachers, an old and a new model; which one teaches is decided token by token.

Knows: logits. Does not know: models, sequences' text, who the teachers are. Source: MUSCLE, Echterhoff et al. 2024,
arXiv:2407.09435, section 4.2, whose mask is `student_wrong`; the others are the ones of its ablation. Masks carry no
gradient. Each function returns one value a token; the caller takes means.
Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch.nn.functional import cross_entropy

from optative.optimizers.losses.shapes import check_shapes

Align = Literal["student_wrong", "old_right", "always", "never", "likelier_token", "likelier_sequence"]
ALIGNMENTS: tuple[Align, ...] = get_args(Align)


def teacher_kl(teacher_NV: torch.Tensor, student_NV: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), [N], in nats; no gradient reaches the teacher.

    The factor keeps the size of the gradient when T changes (Hinton et al. 2015, arXiv:1503.02531, section 2).

    >>> teacher_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]), temperature=3.0)
    tensor([0.])
    """
    check_shapes("NV", teacher_NV=teacher_NV, student_NV=student_NV)
    teacher_NV = (teacher_NV.detach() / temperature).log_softmax(-1)
    student_NV = (student_NV / temperature).log_softmax(-1)
    return temperature**2 * (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)


@torch.no_grad()
def towards_old(
    align: Align,
    student_NV: torch.Tensor,
    old_NV: torch.Tensor,
    targets_N: torch.Tensor,
    sequence_N: torch.Tensor,
) -> torch.Tensor:
    """Which tokens the old model teaches, [N] of bool; at the others the new one does.

    student_wrong: where the student's own most likely token is not the target, as it is now. old_right: where the old
    model's is. likelier_token: where the old model finds the target likelier than the student does; likelier_sequence:
    the same for the whole sequence that the token belongs to (`sequence_N`: its index, tokens of a sequence share it).
    always: plain distillation of the old model; never: of the new one. Among equal logits the first token is the most
    likely.

    >>> logits_NV = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    >>> towards_old("student_wrong", logits_NV, logits_NV, torch.tensor([0, 1]), torch.tensor([0, 0]))
    tensor([False,  True])
    """
    check_shapes("NV", student_NV=student_NV, old_NV=old_NV)
    check_shapes("N", targets_N=targets_N, sequence_N=sequence_N, of_student_N=student_NV[:, 0])
    if align in ("always", "never"):
        return torch.full_like(targets_N, align == "always", dtype=torch.bool)
    if align == "student_wrong":
        return student_NV.argmax(-1) != targets_N
    if align == "old_right":
        return old_NV.argmax(-1) == targets_N
    gain_N = cross_entropy(student_NV, targets_N, reduction="none") - cross_entropy(old_NV, targets_N, reduction="none")
    if align == "likelier_sequence":
        whole_S = gain_N.new_zeros(int(sequence_N.max()) + 1).index_add(0, sequence_N, gain_N)
        gain_N = whole_S[sequence_N]
    elif align != "likelier_token":
        raise ValueError(f"unknown alignment {align!r}")
    return gain_N > 0


def compatible(
    student_NV: torch.Tensor,
    old_NV: torch.Tensor,
    new_NV: torch.Tensor,
    targets_N: torch.Tensor,
    towards_old_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    nll_weight: float = 0.0,
) -> torch.Tensor:
    """`teacher_kl` of the old model where `towards_old_N`, of the new one elsewhere, plus the NLL of the target, [N].

    arXiv:2407.09435, section 4.2; the paper needs the NLL where the old model is much the weaker one.
    """
    check_shapes("NV", student_NV=student_NV, old_NV=old_NV, new_NV=new_NV)
    check_shapes("N", targets_N=targets_N, towards_old_N=towards_old_N, of_student_N=student_NV[:, 0])
    teacher_NV = torch.where(towards_old_N[:, None], old_NV, new_NV)
    loss_N = teacher_kl(teacher_NV, student_NV, temperature=temperature)
    if nll_weight:
        loss_N = loss_N + nll_weight * cross_entropy(student_NV, targets_N, reduction="none")
    return loss_N
