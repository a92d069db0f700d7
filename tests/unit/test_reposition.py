"""A sink next to its window: distances as if what is kept had been numbered anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.shot_sink import ShotSink
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.kv.spec import KVSpec
from flowcache_core.models.common.rope import apply_rope, moved, rope_table
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.layers import apply_rope as magi_rope
from flowcache_core.models.magi.layers import rope_table as magi_table
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.schedule import shifted

HEAD, TOKENS = 24, 4


def wan_keys(raw: Tensor, frame: int) -> Tensor:
    """Keys ``[B, heads, tokens, head_dim]`` of one frame of 2 x 2 tokens, at that frame."""
    return apply_rope(raw.transpose(1, 2), rope_table(frame, 1, 2, 2, raw.shape[-1])).transpose(1, 2)


@pytest.mark.parametrize("frames", [1, 17, 4000])
def test_moved_keys_are_those_of_a_later_frame(frames: int) -> None:
    raw = torch.randn(2, 3, TOKENS, HEAD)
    assert (moved(wan_keys(raw, 2), frames) - wan_keys(raw, 2 + frames)).abs().max() < 1e-4
    assert moved(wan_keys(raw, 2).bfloat16(), frames).dtype == torch.bfloat16


def test_magi_keys_move_by_its_learned_bands() -> None:
    sizes = {"dim": 48, "ffn_dim": 64, "num_layers": 1, "num_heads": 2, "kv_heads": 1, "head_dim": 32}
    config = MagiConfig(**sizes, text_dim=8, text_len=4, freq_dim=8, cond_dim=8, bands=4)
    model = MagiTransformer(config)
    torch.nn.init.normal_(model.rope.bands, std=0.5)
    denoiser = MagiDenoiser(model, {0: (torch.zeros(1, 1, 8), torch.ones(1, 1))})
    raw = torch.randn(1, 1, TOKENS, 32)
    at = lambda frame: magi_rope(raw, magi_table(model.rope.bands, frame, 1, 2, 2))  # noqa: E731
    assert (denoiser.move(at(3), 9) - at(12)).abs().max() < 1e-4


def small(**options: object) -> WanDenoiser:
    torch.manual_seed(0)
    config = WanConfig(dim=48, ffn_dim=48, num_layers=2, num_heads=2, text_dim=16, freq_dim=16)
    model = WanTransformer(config).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    return WanDenoiser(model, {0: (torch.randn(1, 5, 16),)})


def video(frames: int, kv: KVSettings, **changes: object) -> Tensor:
    denoiser = small()
    settings = EngineSettings(blockwise(frames, 1, 2), shifted(2, 5.0), kv=kv, clean_pass=True)
    noise = torch.randn(1, 16, frames, 4, 4, generator=torch.Generator().manual_seed(1))
    return generate(denoiser, replace(settings, **changes), noise)  # type: ignore[arg-type]


def test_nothing_moves_before_something_is_dropped_and_then_it_does() -> None:
    plain, near = (KVSettings(2.0, SinkWindow(sink=1.0, reposition=on)) for on in (False, True))
    assert torch.equal(video(3, plain), video(3, near))
    a, b = video(8, plain), video(8, near)
    assert torch.equal(a[:, :, :3], b[:, :, :3]) and not torch.allclose(a[:, :, 4:], b[:, :, 4:], atol=1e-4)
    whole = KVSettings(8.0, SinkWindow(sink=1.0, reposition=True))
    assert torch.equal(video(8, whole), video(8, KVSettings()))


@pytest.mark.parametrize("budget, sink", [(2.0, 1.0), (3.0, 2.0), (2.5, 1.0)])
def test_what_is_read_is_as_if_numbered_anew(budget: float, sink: float) -> None:
    """Keys written at their video frames; read, the sink stands right before the oldest frame of the window."""
    frames = 9
    spec = KVSpec(1, 2, HEAD, TOKENS, 1, 1, move=moved)
    cache = KVCache(spec, KVSettings(budget, SinkWindow(sink=sink, reposition=True)), blockwise(frames, 1, 1))
    raw = torch.randn(frames, 1, 2, TOKENS, HEAD)
    for chunk in cache.plan.chunks:
        cache.begin(chunk)
        keys = wan_keys(raw[chunk.index], chunk.index)
        cache.write(0, range(1), chunk, keys, keys)
        read, values = cache.context(0, range(1), chunk)
        kept = cache.layouts[0].clean_tokens
        window = kept - round(sink * TOKENS)
        oldest = chunk.index - -(-window // TOKENS)  # the first frame of the window, maybe a part of one
        for place in range(min(int(sink), kept // TOKENS)):
            frame = place if chunk.index <= budget else oldest - int(sink) + place
            expected = wan_keys(raw[place], frame)
            assert (read[:, :, place * TOKENS : (place + 1) * TOKENS] - expected).abs().max() < 1e-4
        assert torch.equal(read[:, :, -TOKENS:], keys) and torch.equal(values[:, :, -TOKENS:], keys)
        cache.commit(chunk)


def test_a_model_that_cannot_move_keys_and_shots_are_refused() -> None:
    near = KVSettings(2.0, SinkWindow(reposition=True))
    with pytest.raises(SettingError, match="reposition"):
        KVCache(KVSpec(1, 2, HEAD, TOKENS, 1, 1), near, blockwise(4, 1, 1))
    with pytest.raises(SettingError, match="shot-sink"):
        ShotSink(reposition=True)


def test_history_computed_again_keeps_its_sink() -> None:
    """With a new prompt the sink is written again as well, and only the newest whole chunks that fit beside it."""
    seen: list[tuple[str, int]] = []

    def watch(event: object) -> None:
        if type(event).__name__ == "CachePass":
            seen.append((event.kind, event.chunk))  # type: ignore[attr-defined]

    denoiser = small()
    kv = KVSettings(3.0, SinkWindow(sink=1.0, reposition=True))
    settings = EngineSettings(blockwise(7, 1, 2), shifted(2, 5.0), kv=kv, clean_pass=True, recache=frozenset({5}))
    generate(denoiser, settings, torch.randn(1, 16, 7, 4, 4), observe=watch)
    assert [chunk for kind, chunk in seen if kind == "recache"] == [0, 3, 4]
