"""The processes of one training: who they are, who computes which unit, and what is summed over all of them.

Knows: torch.distributed, the environment that torchrun sets, FSDP2. Does not know: steps, losses, models, files.
One process is the case of size 1: nothing is sent, and everything comes back as it was given.

Two ways. *Copies*: every process holds all weights; gradients are summed once a step. *Shards* (`sharded`): the weights
of blocks, their gradients and their optimizer state are split over the processes (FSDP2), what lies outside the blocks
(embeddings, head) stays a copy. The sums are the same, up to the order of additions.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from optative.core.errors import InputError, OptativeError

T = TypeVar("T")

BUCKET_ELEMENTS = 1 << 24  # gradients that travel together; bounds the copy that is made of them
PATIENCE = timedelta(hours=2)  # one rank may write a large checkpoint while the others wait


@dataclass(frozen=True)
class World:
    """This process among its peers. All methods that talk are called by every rank, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, num_units: int, costs: Sequence[float] | None = None) -> list[int]:
        """Positions, ascending, of the units that this rank computes; every unit has one rank.

        Without costs in turn. With one cost for each unit: the dearest first, each to the rank with the least so far.

        >>> [World(rank, 2).share(5) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
        >>> [World(rank, 2).share(4, [1, 9, 4, 4]) for rank in (0, 1)]
        [[1], [0, 2, 3]]
        """
        if costs is None:
            return list(range(self.rank, num_units, self.size))
        loads, own = [0.0] * self.size, []
        for unit in sorted(range(num_units), key=lambda i: -costs[i]):
            least = loads.index(min(loads))
            loads[least] += costs[unit]
            if least == self.rank:
                own.append(unit)
        return sorted(own)

    def every(self, value: T) -> list[T]:
        """The value of each rank, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def first(self, value: T) -> T:
        """The value of rank 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def world() -> World:
    """The processes that torchrun started, joined on the first call; one process without torchrun.

    Each rank takes the accelerator of its local number. Processes talk through gloo on the CPU and NCCL on CUDA.
    """
    if not dist.is_initialized():
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or os.environ["WORLD_SIZE"] == "1":
            return World()
        on_cuda = torch.cuda.is_available()
        if on_cuda:
            own, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if own >= gpus:
                raise InputError(
                    "more processes than GPUs",
                    field="--nproc-per-node",
                    found=f"local rank {own}",
                    expected=f"at most {gpus} processes",
                    hint="An empty CUDA_VISIBLE_DEVICES trains on the CPU.",
                )
            torch.cuda.set_device(own)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size())


def even(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This rank's items with True, then its first one with False until every rank has had equally many.

    For forwards of a sharded model, which all ranks have to make together; what comes with False does not count.
    """
    spare = max(world().every(len(items))) - len(items)
    yield from ((item, True) for item in items)
    yield from ((items[0], False) for _ in range(spare))


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients of copies over all ranks, in place; those of shards were summed in the backward.

    A parameter that this rank did not use counts as zero where another rank used it.
    """
    here = world()
    copies = [p for p in parameters if not isinstance(p, DTensor)]
    if here.size == 1 or not copies:
        return
    used = torch.tensor([p.grad is not None for p in copies], dtype=torch.int32, device=copies[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    bucket: list[Tensor] = []
    for parameter, is_used in zip(copies, used.tolist()):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET_ELEMENTS:
                _sum(bucket)
                bucket = []
    if bucket:
        _sum(bucket)


def _sum(gradients: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(summed.view_as(gradient))


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their global 2-norm is at most `max_norm`; returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    copies = [g for g in gradients if not isinstance(g, DTensor)]
    shards = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    norm = float(torch.nn.utils.get_total_norm(copies))
    if shards:
        square = torch.nn.utils.get_total_norm(shards).double().square().reshape(1)
        dist.all_reduce(square)
        norm = (norm**2 + float(square)) ** 0.5
    if norm + 1e-6 > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / (norm + 1e-6))
    return norm


def check_same(parameters: Mapping[str, Tensor], state: Any) -> None:
    """Raise unless every rank starts from the same weights and the same checkpoint."""
    sums = [float(p.detach().double().sum()) for p in parameters.values() if not isinstance(p, DTensor)]
    found = world().every((sums, state))
    if any(other[1] != state for other in found):
        raise InputError(
            "the processes see different checkpoints", hint="The run folder has to be on a disk that all of them share."
        )
    if any(other[0] != sums for other in found):
        raise OptativeError("the processes start from different weights")


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is sharded; then every rank has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor laid out as `other`: on its device, and sharded if it is."""
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


@contextmanager
def sharded(root: torch.nn.Module, blocks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside the block the weights of `blocks` are split over the ranks; afterwards every rank holds all of them.

    root: the module whose forward runs the blocks. Parameters are other objects inside the block, and again other ones
    after it: look them up there. A forward or backward inside is a joint act, so every rank has to make equally many.
    Once for a model. Raises InputError in a single process. Needs torch 2.9 or newer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    here = world()
    if here.size == 1:
        raise InputError("cannot act: there is one process, so there is nothing to split", field="shard", found=True)
    if root in _SHARDED:
        raise InputError("a model can be split once; a second training needs copies", field="shard", found=True)
    _SHARDED.add(root)
    before = {module: (type(module), _hooks(module), set(vars(module))) for module in root.modules()}
    mesh = init_device_mesh(next(root.parameters()).device.type, (here.size,))
    inside = {p for block in blocks for p in block.parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh, ignored_params={p for p in root.parameters() if p not in inside})
    modules: list[Any] = [root, *blocks]
    for module in modules:
        # The normaliser of a step is that of all ranks, so gradients are summed and not averaged.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums
    added = {module: set(vars(module)) - names for module, (_, _, names) in before.items()}
    yield  # after an error nothing is put back: that would wait for ranks that may not come
    for module in modules:
        module.reshard()
    _make_whole(root)
    # FSDP2 has no way back of its own: take its hooks and its class off again.
    for module, (kind, hooks, _) in before.items():
        module.__class__ = kind
        vars(module).update(hooks)
        for name in added[module]:
            delattr(module, name)


_SHARDED: WeakSet[torch.nn.Module] = WeakSet()


def _hooks(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value.copy() for name, value in vars(module).items() if name.endswith("_hooks") and value is not None}


def _make_whole(root: torch.nn.Module) -> None:
    """Replace every sharded parameter by one with all values."""
    for module in root.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                values = whole(parameter.detach())
                setattr(module, name, torch.nn.Parameter(values, requires_grad=parameter.requires_grad))
