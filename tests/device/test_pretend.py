"""The pretended device is as strict as a real one, and nothing asked of it goes uncounted."""

from __future__ import annotations

import pytest
import torch

A = torch.arange(6.0).view(2, 3)


def test_values_are_those_of_the_cpu(count):
    x = A.to("pretend")
    assert x.device == torch.device("pretend:0") and x.shape == (2, 3)
    y = torch.nn.functional.gelu(x @ x.T + 1)
    y[0].add_(2)  # a view writes through
    expected = torch.nn.functional.gelu(A @ A.T + 1)
    expected[0] += 2
    assert torch.equal(y.cpu(), expected)


def test_devices_do_not_mix(count):
    x = torch.ones(3, device="pretend")
    for wrong in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(3)]), lambda: A[0][x.long()]):
        with pytest.raises(RuntimeError, match="on the CPU"):
            wrong()
    assert (x + torch.tensor(1.0)).tolist() == [2.0] * 3  # a number may come from the CPU
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 1),
        lambda x: float(x.sum()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.masked_select(x > 1),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: "yes" if x.any() else "no",
        lambda x: torch.empty(3).copy_(x),
    ],
)
def test_whatever_the_host_must_wait_for_is_one_sync(count, read):
    x = torch.arange(3.0, device="pretend")
    assert count.syncs == []
    read(x)
    assert len(count.syncs) == 1


def test_what_needs_no_answer_is_none(count):
    x = torch.arange(6.0, device="pretend").view(2, 3)
    x[:, 1:] = 4
    x.sort(-1).indices.gather(-1, torch.zeros(2, 1, dtype=torch.long, device="pretend"))
    x.where(x > 1, 0).sum().sqrt()
    assert count.syncs == [] and count.copies == []
    assert x.cpu()[0].tolist() == [0, 4, 4]


def test_copies_are_counted_with_size_direction_and_place(count):
    x = torch.ones(4, 2).to("pretend")
    torch.tensor([1, 2], device="pretend")
    x[torch.tensor([0])] = 3
    x.half().to("cpu", non_blocking=True)
    told = [(copy.direction, copy.bytes, copy.blocking) for copy in count.copies]
    into, back = "cpu to pretend", "pretend to cpu"
    assert told == [(into, 32, True), (into, 16, True), (into, 8, True), (back, 16, False)]
    assert {copy.site.split()[0] for copy in count.copies} == {"test_pretend.py"}


def test_kernels_are_what_the_device_computes(count):
    x = torch.empty(4, 2, device="pretend")
    assert count.kernels == 0
    x.view(8).transpose(0, 0)
    torch.ones(3) + 1
    assert count.kernels == 0
    x.fill_(1)
    x + x
    assert count.kernels == 2
