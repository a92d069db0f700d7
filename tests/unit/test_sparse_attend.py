"""What every engine must return, and what happens where none works."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.sparse import attend as module
from flowcache_core.sparse.attend import ENGINE_NAMES, attend, choose_engine, dense
from flowcache_core.sparse.engines import ENGINES, Call, EngineError, flex, sparge
from flowcache_core.sparse.engines.base import odd_out
from flowcache_core.sparse.engines.flex import Flex
from flowcache_core.sparse.engines.gather import Gather
from flowcache_core.sparse.mask import SparseMask

GOLDEN = Path(__file__).parents[1] / "golden" / "sparse_attention"
Case = tuple[Tensor, Tensor, Tensor, SparseMask]


def golden(name: str) -> tuple[Case, Tensor]:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        block = json.loads(file.metadata()["about"])["block"]
    t = load_file(path)
    mask = SparseMask(t["mask"].bool(), block, t["q"].shape[2], t["k"].shape[2])
    return (t["q"], t["k"], t["v"], mask), t["out"]


def case(
    q_tokens: int,
    k_tokens: int,
    *,
    batch: int = 2,
    kv_batch: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    block: int = 16,
    density: float = 0.4,
    seed: int = 0,
) -> Case:
    """Random tensors and a random mask, in which some rows keep nothing and one head everything."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, q_tokens, dim, generator=g)
    k, v = (torch.randn(kv_batch, kv_heads, k_tokens, dim, generator=g) for _ in range(2))
    kept = torch.rand(batch, heads, -(-q_tokens // block), -(-k_tokens // block), generator=g) < density
    kept[:, 0], kept[-1, -1, 0] = True, False
    return q, k, v, SparseMask(kept, block, q_tokens, k_tokens)


def by_definition(q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
    """float64, over the full product; rows without a block are 0."""
    block, group = mask.block, q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    seen = mask.kept.repeat_interleave(block, 2)[:, :, : mask.q_tokens].repeat_interleave(block, 3)[
        ..., : mask.k_tokens
    ]
    logits = (q.double() @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~seen, -torch.inf)
    return logits.softmax(-1).nan_to_num(0.0) @ v


@pytest.fixture(scope="module")
def compiler() -> Iterator[None]:
    """Skips where torch cannot compile flex_attention on this CPU (no C++ compiler, or none that torch supports)."""
    (q, k, _, mask), _ = golden("bsa_mini_16")
    reason = Flex().blocker(Call.of(q, k, mask.block))
    if reason is not None:
        pytest.skip(reason)
    yield


@pytest.fixture(params=["gather", "flex"])
def engine(request: pytest.FixtureRequest) -> str:
    """Every engine that may work on a CPU."""
    if request.param == "flex":
        request.getfixturevalue("compiler")
    return str(request.param)


@pytest.mark.parametrize("name", ["bsa_mini_16", "bsa_ragged_64"])
def test_outputs_are_the_golden_ones(name: str, engine: str) -> None:
    given, expected = golden(name)
    assert (attend(*given, engine=engine) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("tokens", [(48, 96), (37, 101), (100, 40), (64, 64)])
def test_ragged_ends_grouped_heads_one_history_for_a_batch_and_empty_rows(tokens: tuple[int, int], engine: str) -> None:
    given = case(*tokens)
    out = attend(*given, engine=engine)
    assert (out - by_definition(*given)).abs().max() < 1e-5
    assert bool((out[-1, -1, :16] == 0).all())


@pytest.mark.parametrize("block", [1, 7, 64, 200])
def test_gather_takes_any_block(block: int) -> None:
    given = case(33, 70, block=block, kv_batch=2)
    assert (attend(*given, engine="gather") - by_definition(*given)).abs().max() < 1e-5


def test_a_mask_of_one_head_or_item_holds_for_all() -> None:
    q, k, v, mask = case(32, 64)
    one = replace(mask, kept=mask.kept[:1, 1:2])
    expected = replace(mask, kept=mask.kept[:1, 1:2].expand(2, 4, -1, -1))
    assert torch.equal(attend(q, k, v, one), attend(q, k, v, expected))


def test_dense_attention_is_that_of_a_full_mask() -> None:
    q, k, v, mask = case(37, 101)
    full = replace(mask, kept=torch.ones_like(mask.kept))
    assert (dense(q, k, v) - by_definition(q, k, v, full)).abs().max() < 1e-5


def test_half_precision_is_as_good_as_dense_attention_in_it() -> None:
    q, k, v, mask = case(37, 101)
    half = [x.bfloat16() for x in (q, k, v)]
    out = attend(*half, mask)
    assert out.dtype == torch.bfloat16 and (out.double() - by_definition(q, k, v, mask)).abs().max() < 2e-2


@pytest.mark.usefixtures("compiler")
def test_new_masks_and_lengths_are_no_new_kernel() -> None:
    from torch._dynamo.utils import counters

    def kernels() -> int:
        return counters["stats"]["unique_graphs"]

    attend(*case(48, 96), engine="flex")
    before = kernels()
    for seed, tokens in enumerate([(48, 96), (48, 96), (48, 112), (40, 90), (64, 64), (100, 33)]):
        given = case(*tokens, seed=seed, density=0.2 + 0.1 * seed)
        assert (attend(*given, engine="flex") - by_definition(*given)).abs().max() < 1e-5
    assert kernels() == before > 0


@pytest.mark.usefixtures("compiler")
def test_flex_is_never_run_uncompiled(caplog: pytest.LogCaptureFixture) -> None:
    (q, k, v, mask), _ = golden("bsa_mini_16")
    call = Call.of(q, k, mask.block)
    with torch.compiler.set_stance("force_eager"), pytest.raises(EngineError, match="does not compile here"):
        flex._run(call, None, q, k, v, mask)


def test_kernels_that_fail_are_tried_with_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def kernel(call: Call, tile: int | None) -> Callable[..., Tensor]:
        tried.append(tile)
        if tile is None:
            raise RuntimeError("out of resource: shared memory, Required: 114688, Hardware limit: 101376\nmore lines")
        return lambda q, k, v, number, index: _from_lists(q, k, v, number, index, call.block)

    monkeypatch.setattr(flex, "_kernel", kernel)
    monkeypatch.setattr(flex, "_tile", {})
    monkeypatch.setattr(flex, "_problem", {})
    card = FakeCard("cpu")  # tensors stay here, the engine takes the device for a GPU
    call = replace(Call.of(*case(32, 64)[:2], 16), device=card)  # type: ignore[arg-type]
    assert Flex().blocker(call) is None and tried == [None, 64] and flex._tile[call] == 64
    assert Flex().blocker(call) is None and len(tried) == 2  # known by now


class FakeCard(str):
    """The CPU under a GPU's type: torch takes the string, the engines ask for the type."""

    type = "cuda"


def _from_lists(q: Tensor, k: Tensor, v: Tensor, number: Tensor, index: Tensor, block: int) -> Tensor:
    """Attention by the block lists a kernel gets."""
    listed = torch.arange(index.shape[-1]) < number[..., None]
    kept = torch.zeros_like(listed).scatter_(-1, index.long(), listed)
    return Gather().attend(q, k, v, SparseMask(kept, block, q.shape[2], k.shape[2]))


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_kernel", lambda call, tile: lambda q, k, v, number, index: dense(q, k, v))
    monkeypatch.setattr(flex, "_tile", {})
    monkeypatch.setattr(flex, "_problem", {})
    reason = Flex().blocker(Call.of(*case(32, 64)[:2], 16))
    assert reason is not None and "its result is off by" in reason
    monkeypatch.setattr(flex, "_problem", {})
    monkeypatch.setattr(flex, "_kernel", lambda call, tile: lambda q, k, v, number, index: q * torch.nan)
    assert "nan" in (Flex().blocker(Call.of(*case(32, 64)[:2], 16)) or "")


# -- the choice --------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(call: Call, tile: int | None) -> Callable[..., Tensor]:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(flex, "_kernel", kernel)
    monkeypatch.setattr(flex, "_tile", {})
    monkeypatch.setattr(flex, "_problem", {})
    module._warn_once.cache_clear()


def test_the_registry_names_every_engine() -> None:
    assert {engine.name: engine for engine in ENGINES.values()} == ENGINES
    assert set(ENGINE_NAMES) == {"auto", "dense", *ENGINES}


def test_a_cpu_gathers() -> None:
    call = Call.of(*case(32, 64)[:2], 16)
    for sage in (False, True):
        choice = choose_engine("auto", call, sage=sage)
        assert (choice.name, choice.note) == ("gather", None)
    assert (choose_engine("dense", call).name, choose_engine("dense", call).note) == ("dense", None)


@pytest.mark.usefixtures("broken_flex")
def test_where_nothing_works_attention_is_dense_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v, mask = case(32, 64)
    call = Call.of(q, k, 16)
    choice = choose_engine("flex", call)
    assert choice.name == "dense"
    assert choice.note == (
        "attention stays dense: flex_attention does not work for float32 on cpu, 4 heads of 16, blocks of 16: "
        "ImportError: No module named 'triton'"
    )
    gpu = choose_engine("auto", replace(call, device=FakeCard("cpu")), sage=True)  # type: ignore[arg-type]
    assert gpu.name == "dense" and "SpargeAttn" in (gpu.note or "") and "triton" in (gpu.note or "")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(attend(q, k, v, mask, engine="flex"), dense(q, k, v))
    assert [record.message for record in caplog.records] == [choice.note]


def test_an_engine_that_fails_in_a_run_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(32, 64)
    call = Call.of(given[0], given[1], 16)
    monkeypatch.setattr(flex, "_tile", {call: None})
    monkeypatch.setattr(flex, "_problem", {})

    def fails(*_: Any) -> Tensor:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(flex, "_kernel", lambda call, tile: fails)
    assert torch.equal(attend(*given, engine="flex"), dense(*given[:3]))
    assert "illegal memory access" in (choose_engine("flex", call).note or "")


def test_running_out_of_memory_is_no_reason_to_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(32, 64)
    monkeypatch.setattr(flex, "_tile", {Call.of(given[0], given[1], 16): None})

    def fails(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flex, "_kernel", lambda call, tile: fails)
    with pytest.raises(torch.OutOfMemoryError):
        attend(*given, engine="flex")


# -- SpargeAttn: its package runs on NVIDIA cards only, so a stand-in computes what its call is documented to ----------


def _by_mask_id(rows: int, columns: int) -> ModuleType:
    def kernel(q: Tensor, k: Tensor, v: Tensor, mask_id: Tensor) -> Tensor:
        assert k.shape[:1] == v.shape[:1] == q.shape[:1] and mask_id.is_contiguous()
        assert mask_id.shape == (*q.shape[:2], -(-q.shape[2] // rows), -(-k.shape[2] // columns))
        seen = mask_id.repeat_interleave(rows, 2)[:, :, : q.shape[2]].repeat_interleave(columns, 3)[..., : k.shape[2]]
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), seen, enable_gqa=True)
        return out.masked_fill(~seen.any(-1, keepdim=True), torch.nan).to(q.dtype)  # unknown there

    package = ModuleType("spas_sage_attn")
    package.block_sparse_sage2_attn_cuda = kernel  # type: ignore[attr-defined]
    return package


@pytest.fixture(params=[((8, 9), 128, 64), ((9, 0), 64, 128)], ids=["Ada", "Hopper"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    capability, rows, columns = request.param
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(sparge, "_known", {})
    monkeypatch.setitem(sys.modules, "spas_sage_attn", _by_mask_id(rows, columns))
    return FakeCard("cpu")


@pytest.mark.parametrize("block", [128, 256])
def test_sparge_gets_our_blocks_split_into_its_own(card: FakeCard, block: int) -> None:
    q, k, v, mask = case(300, 700, dim=64, block=block)
    call = replace(Call.of(q.half(), k.half(), block), device=card)  # type: ignore[arg-type]
    assert choose_engine("auto", call, sage=True).name == "sparge"
    out = sparge._run(sparge._kernel(), *sparge._split(card), q, k, v, mask)  # type: ignore[arg-type]
    assert (out - by_definition(q, k, v, mask)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": torch.device("cpu")}, "needs an NVIDIA GPU"),
        ({"head_dim": 96}, "heads of 64 and 128"),
        ({"dtype": torch.float32}, "float16 and bfloat16"),
        ({"block": 64}, "a multiple of 128"),
    ],
)
def test_sparge_says_what_it_cannot_do(card: FakeCard, changes: dict[str, Any], reason: str) -> None:
    call = Call(card, torch.bfloat16, 1, 1, 4, 4, 128, 128)  # type: ignore[arg-type]
    assert ENGINES["sparge"].blocker(call) is None
    assert reason in (ENGINES["sparge"].blocker(replace(call, **changes)) or "")


def test_a_sparge_that_is_absent_or_wrong_is_not_used(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(card, torch.bfloat16, 1, 1, 4, 4, 64, 128)  # type: ignore[arg-type]
    wrong = SimpleNamespace(block_sparse_sage2_attn_cuda=lambda q, k, v, mask_id: torch.zeros_like(q))
    monkeypatch.setitem(sys.modules, "spas_sage_attn", wrong)
    assert "off by" in (ENGINES["sparge"].blocker(call) or "")
    monkeypatch.setattr(sparge, "_known", {})
    monkeypatch.setitem(sys.modules, "spas_sage_attn", None)
    assert "not installed" in (ENGINES["sparge"].blocker(call) or "")


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_the_trial_case_sees_a_single_wrong_block() -> None:
    call = Call.of(*case(32, 64)[:2], 16)

    def off_by_a_block(q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
        kept = mask.kept.clone()
        kept[0, 0, 0, 0] ^= True
        return Gather().attend(q, k, v, replace(mask, kept=kept))

    assert odd_out(call, Gather().attend, 1e-5) is None
    assert odd_out(call, off_by_a_block, 3e-2) is not None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda q, k, v, m: (q[0], k, v, m), "q, k, v"),
        (lambda q, k, v, m: (q.half(), k, v, m), "q, k, v"),
        (lambda q, k, v, m: (q, k, v[..., :-1, :], m), "k, v"),
        (lambda q, k, v, m: (q[:, :3], k, v, m), "k, v"),
        (lambda q, k, v, m: (q[..., :8], k, v, m), "k, v"),
        (lambda q, k, v, m: (q, k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1), m), "k, v"),
        (lambda q, k, v, m: (q[:, :, 1:], k, v, m), "mask"),
        (lambda q, k, v, m: (q, k, v, replace(m, kept=m.kept[:, :3])), "mask"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: Callable[..., Any], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        attend(*change(*case(32, 64)))
    assert caught.value.field == field


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(SettingError, match="engine: got 'xformers', accepted: auto or gather"):
        attend(*case(32, 64), engine="xformers")
