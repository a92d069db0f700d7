"""The MAGI-1 transformer against golden data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_weights import as_recorded, magi_transformer
from magi_tiny import assert_close
from safetensors.torch import load_file
from torch import Tensor

from flowcache_core.models.common.cached_attention import attending
from flowcache_core.models.magi.guidance import (
    GuidanceScales,
    guide,
    is_nearly_clean,
    mix_nearly_clean,
)
from flowcache_core.models.magi.layers import attend_grouped, rope_table
from flowcache_core.models.magi.text import null_caption
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.schedule import magi_distill_times

GOLDEN = Path(__file__).parents[1] / "golden" / "magi_dit.safetensors"
STEP_TIMES = {"plain": None, "distill16": 8.0, "distill64": 32.0, "distill12_interval2": 4.0}
FRAMES, TOKENS = 6, 36


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture
def data(stored, monkeypatch) -> dict[str, Tensor]:
    """The golden file, and the time embedding as it was made with."""
    as_recorded(monkeypatch)
    return stored


@pytest.fixture(scope="module")
def model(stored) -> MagiTransformer:
    return magi_transformer(stored)


class History:
    """All K and V so far, per layer; starts with what is given, ``[tokens, kv_heads, K | V]`` per layer."""

    def __init__(self, given: Tensor | None = None) -> None:
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, packed in enumerate(() if given is None else given):
            k, v = packed.transpose(0, 1).unsqueeze(0).chunk(2, -1)
            self.kv[layer] = (k, v)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert k.shape == v.shape and q.shape[2:] == k.shape[2:] and q.shape[1] == 3 * k.shape[1]
        if layer in self.kv:
            k, v = (torch.cat(pair, 2) for pair in zip(self.kv[layer], (k, v), strict=True))
        self.kv[layer] = (k, v)
        return k, v

    def packed(self, layer: int) -> Tensor:
        return torch.cat(self.kv[layer], -1)[0].transpose(0, 1)


def own(layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


def run(model, data, chunk, memory, *, t=None, first_frame=None, caption=None, **options) -> Tensor:
    """Velocity ``[16, f, H, W]`` of a golden chunk, by default at its own time, place and caption."""
    states, mask = (data["in.caption"][chunk], data["in.caption_mask"][chunk]) if caption is None else caption
    return model.forward_chunk(
        data["in.x"][chunk, None],
        (data["in.t"][chunk] if t is None else t)[None],
        states[None],
        mask[None],
        first_frame=FRAMES * chunk if first_frame is None else first_frame,
        attention=attending(memory, attend_grouped),
        **options,
    )[0]


@pytest.mark.parametrize("variant", STEP_TIMES)
def test_one_chunk_on_a_given_cache(model, data, variant):
    history = History(data["in.cache"])
    velocity = run(model, data, 2, history, step_time=STEP_TIMES[variant])
    assert_close(velocity, data[f"{variant}.single.velocity"])
    if variant == "distill16":
        for layer in range(2):
            assert_close(history.packed(layer)[-TOKENS:], data[f"distill16.single.kv_written.layer{layer}"])


def test_what_lies_between_input_and_velocity(model, data):
    streams = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: streams.append(out))
        for layer in model.videodit_blocks.layers
    ]
    run(model, data, 2, History(data["in.cache"]), step_time=8.0)
    for hook in hooks:
        hook.remove()
    for layer in range(2):
        assert_close(streams[layer][0], data[f"distill16.single.hidden_after_layer{layer}"][:, 0])
    assert_close(model.patch_tokens(data["in.x"][2:])[0], data["distill16.single.pre.hidden_states"][:, 0])
    condition = model.condition(data["in.t"][2:], step_time=8.0)
    assert_close(condition, data["distill16.single.pre.condition"][0])
    cos, sin = rope_table(model.rope.bands, 12, 6, 2, 3)
    # fp32 angles of up to 12 radians, and sin | cos in the data
    assert_close(torch.cat((sin, cos), 1), data["distill16.single.pre.rotary_pos_emb"], 1e-5)


@pytest.mark.parametrize("variant", ["plain", "distill16"])
def test_chunks_one_by_one(model, data, variant):
    history = History()
    velocities = [run(model, data, chunk, history, step_time=STEP_TIMES[variant]) for chunk in range(3)]
    assert_close(torch.stack(velocities), data[f"{variant}.chunked.velocity"])
    if variant == "distill16":
        assert_close(history.packed(1), data["distill16.chunked.kv.layer1"])


def test_fewer_earlier_chunks(model, data):
    history = History(data["in.cache"][:, TOKENS:])
    assert_close(run(model, data, 2, history, step_time=8.0), data["distill16.single_range1.velocity"])


@pytest.mark.parametrize("variant", ["plain", "distill16"])
def test_alone_with_the_null_condition(model, data, variant):
    velocity = run(model, data, 2, own, first_frame=0, dropped=True, step_time=STEP_TIMES[variant])
    assert_close(velocity, data[f"{variant}.self_only_dropped.velocity"])


def test_nearly_clean_mix(model, data):
    history = History(data["in.cache"][:, :TOKENS])
    times = data["in.t"][:2]
    (step_time,) = set(magi_distill_times(16))
    velocities = [run(model, data, 1 + i, history, t=times[i], step_time=step_time) for i in range(2)]
    assert_close(torch.stack(velocities), data["nearly_clean_off.velocity"])
    assert [is_nearly_clean(t.item()) for t in times] == [True, False]
    alone = run(model, data, 1, own, t=times[0], first_frame=3 * FRAMES, step_time=step_time)
    velocities[0] = mix_nearly_clean(velocities[0], alone)
    assert_close(torch.stack(velocities), data["nearly_clean.velocity"])


def test_three_branch_guidance(model, data):
    null = null_caption(model.y_embedder.null_caption_embedding)
    with_text, previous = (History(data["in.cache"][:, :TOKENS]) for _ in range(2))
    velocities = []
    for chunk in (1, 2):
        scales = GuidanceScales().at(data["in.t"][chunk].item())
        velocities.append(
            guide(
                run(model, data, chunk, own, first_frame=0, caption=null, dropped=True),
                run(model, data, chunk, previous, caption=null, dropped=True),
                run(model, data, chunk, with_text),
                scales,
            )
        )
    assert_close(torch.stack(velocities), data["cfg3.velocity"], 1e-4)
    assert_close(previous.packed(1), data["cfg3.kv.layer1"])
