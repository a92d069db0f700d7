"""Redundancy scores (Eq. 11) in linear form (Eq. 20) against the naive form: time and extra memory side by side.

    python -m benchmarks.redundancy [--length 24300] [--heads 8] [--head-dim 128] [--device cpu] [--repeats 3]

The paper's example (appendix D.2): L = 24,300 keys of 128 dimensions. The naive form holds an L x L matrix per head
(2.4 GB in fp32), so it runs head by head here, which is kind to it: the times add up, its memory is that of
one head. The linear form runs all heads at once.
"""

from __future__ import annotations

import argparse
import platform
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from flowcache_core.commands.arguments import Parser, require_device
from flowcache_core.errors import require_count
from flowcache_core.kv.importance_redundancy import redundancy

from .results import save


def naive_redundancy(keys: Tensor) -> Tensor:
    """Eq. 11 as it is written, for ``keys`` ``[..., L, d]``: the full similarity matrix, its diagonal set to zero."""
    unit = functional.normalize(keys, dim=-1, eps=1e-8)
    similarity = unit @ unit.transpose(-1, -2)
    similarity.diagonal(dim1=-2, dim2=-1).zero_()
    return similarity.mean(dim=-2).softmax(-1)


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors created inside the block: ``peak`` is the most that were alive at once.

    Scratch memory that a kernel allocates without making a tensor is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._owners: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {x.untyped_storage().data_ptr() for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._track(tensor, given)
        return result

    def _track(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self._owners:
            if address in given or size == 0:
                return  # a view of something made before the block
            self._owners[address] = 0
            self._alive += size
            self.peak = max(self.peak, self._alive)
        self._owners[address] += 1
        weakref.finalize(tensor, self._drop, address, size)

    def _drop(self, address: int, size: int) -> None:
        self._owners[address] -= 1
        if self._owners[address] == 0:
            del self._owners[address]
            self._alive -= size


def measure(score: Callable[[Tensor], Tensor], keys: Tensor, repeats: int) -> tuple[float, int, Tensor]:
    """Best wall-clock seconds of ``repeats`` runs, peak bytes beside the keys (of the first run), and the scores."""
    cuda = keys.is_cuda
    counter = PeakBytes()
    seconds = float("inf")
    for run in range(repeats):
        if cuda:
            torch.cuda.reset_peak_memory_stats(keys.device)
            held = torch.cuda.memory_allocated(keys.device)
        with nullcontext() if cuda or run > 0 else counter:
            begun = time.perf_counter()
            result = score(keys)
            if cuda:
                torch.cuda.synchronize(keys.device)
            seconds = min(seconds, time.perf_counter() - begun)
        if cuda:
            counter.peak = torch.cuda.max_memory_allocated(keys.device) - held
    return seconds, counter.peak, result


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison and save it; seconds for all heads, bytes beside the keys."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="benchmarks.redundancy", description=__doc__, formatter_class=raw)
    parser.add_argument("--length", type=int, default=24_300, help="keys per head (L)")
    parser.add_argument("--heads", type=int, default=8, help="K/V heads")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the linear form; the best one counts")
    args = parser.parse_args(argv)
    limits = {"length": 32_768, "heads": 128, "head_dim": 1024, "repeats": 100}  # the naive form takes 4 L^2 bytes
    for name, most in limits.items():
        require_count(name, getattr(args, name), minimum=1, maximum=most)
    require_device("device", args.device)

    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, args.heads, args.length, args.head_dim, generator=generator).to(args.device)
    linear_seconds, linear_bytes, linear = measure(redundancy, keys, args.repeats)
    naive_seconds, naive_bytes, difference = 0.0, 0, 0.0
    for head in range(args.heads):
        seconds, extra, scores = measure(naive_redundancy, keys[:, head : head + 1], 1)
        naive_seconds, naive_bytes = naive_seconds + seconds, max(naive_bytes, extra)
        difference = max(difference, (scores - linear[:, head : head + 1]).abs().max().item() * args.length)
    figures = {
        "length": args.length,
        "heads": args.heads,
        "threads": torch.get_num_threads(),
        "linear_seconds": linear_seconds,
        "naive_seconds": naive_seconds,
        "faster": naive_seconds / linear_seconds,
        "linear_bytes": linear_bytes,
        "naive_bytes": naive_bytes,
        "smaller": naive_bytes / linear_bytes,
        "difference": difference,
    }
    machine = torch.cuda.get_device_name(keys.device) if keys.is_cuda else platform.processor() or platform.machine()
    print(f"redundancy of L={args.length:,} keys, d={args.head_dim}, {args.heads} heads, fp32")
    print(f"{machine}, {figures['threads']} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{'':22}{'naive (Eq. 11)':>18}{'linear (Eq. 20)':>18}{'ratio':>10}")
    print(f"{'seconds, all heads':22}{naive_seconds:18.4f}{linear_seconds:18.4f}{figures['faster']:9.0f}x")
    print(f"{'extra MB':22}{naive_bytes / 1e6:18.2f}{linear_bytes / 1e6:18.2f}{figures['smaller']:9.0f}x")
    print("naive: one head at a time (times added, memory of one head); linear: all heads at once")
    print(f"largest difference of a score, relative to the mean score 1/L: {difference:.1e}")
    print(f"saved: {save('redundancy', figures)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
