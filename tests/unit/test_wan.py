"""The Wan transformer: against golden data, chunk by chunk against one pass, and its checkpoints."""

from __future__ import annotations

import cmath
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.common.attention import attend_heads
from flowcache_core.models.common.cached_attention import attending
from flowcache_core.models.common.checkpoint import read_state_dict
from flowcache_core.models.common.rope import apply_rope, rope_axes, rope_table
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.load import load_wan
from flowcache_core.models.wan.transformer import PreparedText, WanTransformer

GOLDEN = Path(__file__).parents[1] / "golden" / "sky_dit.safetensors"
TINY = WanConfig(dim=48, ffn_dim=64, num_layers=2, num_heads=3, text_dim=20, freq_dim=32)
SKYREELS_1B = WanConfig(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12, fps_embedding=True)


def tiny(config: WanConfig = TINY, seed: int = 0) -> WanTransformer:
    """A model whose every weight matters: a fresh one has a zero head."""
    torch.manual_seed(seed)
    model = WanTransformer(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs(batch: int = 2, frames: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, a timestep per frame and a context."""
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 16, frames, 4, 6, generator=draw)
    return latents, torch.rand(batch, frames, generator=draw) * 1000, torch.randn(batch, 5, 20, generator=draw)


def assert_close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance


class History:
    """The simplest memory: per layer all K and V so far."""

    def __init__(self) -> None:
        self.kv: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert q.shape == k.shape == v.shape
        self.kv.setdefault(layer, []).append((k, v))
        return self.whole(layer)

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = zip(*self.kv[layer], strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)


def chunk_by_chunk(
    model: WanTransformer,
    x: Tensor,
    timesteps: Tensor,
    context_of: Callable[[int], Tensor | PreparedText],
    chunks: list[int],
    **options,
) -> tuple[Tensor, History]:
    history, parts, first = History(), [], options.pop("first_frame", 0)
    times = timesteps.split(chunks, 1)
    for index, part in enumerate(x.split(chunks, 2)):
        text = context_of(index)
        parts.append(
            model.forward_chunk(
                part, times[index], text, first_frame=first, attention=attending(history, attend_heads), **options
            )
        )
        first += part.shape[2]
    return torch.cat(parts, 2), history


# ---- golden ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def golden_model() -> WanTransformer:
    return load_wan(GOLDEN, torch.float32)


@pytest.mark.parametrize("fps", [24, 16])
def test_golden_causal(golden: dict[str, Tensor], golden_model: WanTransformer, fps: int) -> None:
    x, timesteps, context = golden["in.x"][None], golden["in.t_block"][None], golden["in.ctx_cond"]
    whole = golden_model(x, timesteps, context, chunk_frames=[5] * 5, fps=fps)
    assert_close(whole[0], golden[f"causal.fps{fps}.velocity"])
    chunked, _ = chunk_by_chunk(golden_model, x, timesteps, lambda _: context, [5] * 5, fps=fps)
    assert_close(chunked[0], golden[f"causal.fps{fps}.velocity"])


def test_golden_keys_values_and_tokens(golden: dict[str, Tensor], golden_model: WanTransformer) -> None:
    x, timesteps, context = golden["in.x"][None], golden["in.t_block"][None], golden["in.ctx_cond"]
    after: dict[int, list[Tensor]] = {0: [], 1: []}
    hooks = [
        block.register_forward_hook(lambda _m, _i, out, layer=layer: after[layer].append(out.flatten(1, 2)))
        for layer, block in enumerate(golden_model.blocks)
    ]
    _, history = chunk_by_chunk(golden_model, x, timesteps, lambda _: context, [5] * 5, fps=24)
    for hook in hooks:
        hook.remove()
    for layer in (0, 1):
        k, v = history.whole(layer)
        assert_close(k[0].transpose(0, 1), golden[f"causal.fps24.k.layer{layer}"])
        assert_close(v[0].transpose(0, 1), golden[f"causal.fps24.v.layer{layer}"])
        assert_close(torch.cat(after[layer], 1)[0], golden[f"causal.fps24.tokens_after_layer{layer}"])


@pytest.mark.parametrize("fps", [24, 16])
def test_golden_bidirectional_with_a_timestep_per_frame(golden, golden_model, fps: int) -> None:
    velocity = golden_model(golden["in.x"][None], golden["in.t_frame"][None], golden["in.ctx_cond"], fps=fps)
    assert_close(velocity[0], golden[f"bidir.t_frame.fps{fps}.velocity"])


def test_golden_bidirectional_with_a_timestep_per_block_and_for_all(golden, golden_model) -> None:
    velocity = golden_model(golden["in.x"][None], golden["in.t_block"][None], golden["in.ctx_cond"])
    assert_close(velocity[0], golden["bidir.t_block.velocity"])
    velocity = golden_model(golden["in.x"][None, :, :13], torch.tensor([500]), golden["in.ctx_uncond"])
    assert_close(velocity[0], golden["bidir.t_scalar500_13frames.velocity"])


# ---- chunk by chunk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[1, 3, 2], [5, 1], [1] * 6, [6]])
@pytest.mark.parametrize("first_frame", [0, 300])
def test_chunk_by_chunk_is_one_block_causal_pass(chunks: list[int], first_frame: int) -> None:
    model = tiny()
    x, timesteps, context = inputs()
    x = x[:1].repeat(2, 1, 1, 1, 1)  # cond and uncond of the same latents
    whole = model(x, timesteps, context, chunk_frames=chunks, first_frame=first_frame)
    chunked, _ = chunk_by_chunk(model, x, timesteps, lambda _: context, chunks, first_frame=first_frame)
    assert_close(chunked, whole)
    assert (whole[0] - whole[1]).abs().max() > 0.01


def test_a_chunk_sees_the_past_and_nothing_else() -> None:
    model = tiny()
    x, timesteps, context = inputs()
    before = model(x, timesteps, context, chunk_frames=[2, 2, 2])
    x[:, :, 2:4] += 1
    after = model(x, timesteps, context, chunk_frames=[2, 2, 2])
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert (before[:, :, 4:] - after[:, :, 4:]).abs().max() > 1e-3


def test_a_prompt_for_each_chunk() -> None:
    model = tiny()
    x, timesteps, first = inputs()
    texts = [first, inputs(seed=2)[2], inputs(seed=3)[2][:, :2]]  # lengths differ too
    whole = model(x, timesteps, texts, chunk_frames=[1, 3, 2])
    chunked, _ = chunk_by_chunk(model, x, timesteps, lambda i: texts[i], [1, 3, 2])
    assert_close(whole, chunked)
    one = model(x, timesteps, first, chunk_frames=[1, 3, 2])
    assert torch.equal(one[:, :, :1], whole[:, :, :1]) and not torch.allclose(one[:, :, 1:], whole[:, :, 1:], atol=1e-3)


def test_one_timestep_per_chunk_equals_the_same_for_every_frame() -> None:
    model = tiny()
    x, _, context = inputs()
    assert_close(
        model(x, torch.tensor([700.0, 20.0]), context),
        model(x, torch.tensor([[700.0] * 6, [20.0] * 6]), context),
    )


def test_prepared_text_changes_nothing() -> None:
    model = tiny()
    x, timesteps, context = inputs()
    prepared = model.prepare_text(context)
    assert len(prepared.keys) == len(prepared.values) == 2 and prepared.keys[0].shape == (2, 3, 5, 16)
    assert torch.equal(model(x, timesteps, context), model(x, timesteps, prepared))
    raw, _ = chunk_by_chunk(model, x, timesteps, lambda _: context, [4, 2])
    ours, _ = chunk_by_chunk(model, x, timesteps, lambda _: prepared, [4, 2])
    assert torch.equal(raw, ours)


def test_a_residual_reproduces_the_velocity_it_came_from() -> None:
    model = tiny()
    x, timesteps, context = inputs()
    velocity, residual = model.forward_chunk(
        x, timesteps, context, first_frame=0, attention=attending(History(), attend_heads), return_residual=True
    )
    assert residual.shape == model.patch_tokens(x).shape == (2, 6 * 2 * 3, 48)
    assert_close(model.from_residual(x, timesteps, residual), velocity)
    assert (model.from_residual(x, timesteps, torch.zeros_like(residual)) - velocity).abs().max() > 0.01


def test_patch_tokens_are_the_convolution_in_frame_row_column_order() -> None:
    model = tiny()
    x = inputs()[0]
    expected = model.patch_embedding(x).flatten(2).transpose(1, 2)
    assert_close(model.patch_tokens(x), expected)


def test_time_modulation_is_per_timestep_and_knows_two_frame_rates() -> None:
    model = tiny(replace(TINY, fps_embedding=True))
    timesteps = torch.tensor([[999.0, 500.0, 500.0]])
    e0 = model.time_modulation(timesteps)
    assert e0.shape == (1, 3, 6, 48) and e0.dtype == torch.float32
    assert torch.equal(e0[0, 1], e0[0, 2]) and (e0[0, 0] - e0[0, 1]).abs().max() > 0.01
    assert torch.equal(e0, model.time_modulation(timesteps, fps=24))
    assert (e0 - model.time_modulation(timesteps, fps=16)).abs().max() > 0.01


def test_a_fresh_model_says_zero_and_every_weight_learns() -> None:
    model = WanTransformer(TINY)
    x, timesteps, context = inputs()
    assert torch.equal(model(x, timesteps, context), torch.zeros_like(x))
    torch.nn.init.normal_(model.head.head.weight)
    model(x, timesteps, context, chunk_frames=[2, 4]).square().mean().backward()
    # A key's bias shifts all scores of a query alike; but q and k are normalised first, so even that one counts.
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"x": torch.zeros(2, 16, 6, 5, 6)}, "latents"),
        ({"x": torch.zeros(2, 4, 6, 4, 6)}, "latents"),
        ({"x": torch.zeros(2, 16, 4, 6)}, "latents"),
        ({"timesteps": torch.zeros(2, 5)}, "timesteps"),
        ({"context": torch.zeros(2, 5, 21)}, "context"),
        ({"context": [torch.zeros(2, 5, 20)] * 2}, "context"),
        ({"chunk_frames": [3, 2]}, "chunk_frames"),
        ({"chunk_frames": [7, -1]}, "chunk_frames"),
        ({"first_frame": -1}, "first_frame"),
    ],
)
def test_wrong_inputs_are_named(change: dict, field: str) -> None:
    x, timesteps, context = inputs()
    with pytest.raises(SettingError) as caught:
        tiny()(**{"x": x, "timesteps": timesteps, "context": context, "chunk_frames": [1, 3, 2], **change})
    assert caught.value.field == field


# ---- positions and precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [2, 4, 12, 16, 32, 64, 128])
def test_rope_table_is_exact_at_any_frame(head_dim: int) -> None:
    time, rows, columns = rope_axes(head_dim)
    assert time + rows + columns == head_dim
    assert (time, rows, columns) == (head_dim - 4 * (head_dim // 6), *[2 * (head_dim // 6)] * 2)
    table = rope_table(5001, 2, 3, 4, head_dim)
    assert table.shape == (2 * 3 * 4, 1, head_dim // 2)
    for frame, row, column in ((0, 0, 0), (1, 2, 3), (1, 0, 1)):
        turns = [
            cmath.exp(1j * position * 10000 ** (-2 * i / size))
            for position, size in ((5001 + frame, time), (row, rows), (column, columns))
            for i in range(size // 2)
        ]
        expected = torch.tensor(turns, dtype=torch.complex128)
        assert (table[(frame * 3 + row) * 4 + column, 0] - expected).abs().max() < 1e-7


def test_rope_turns_neighbouring_pairs() -> None:
    table = rope_table(3, 1, 1, 1, 2)
    turned = apply_rope(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), table)
    assert_close(turned.flatten(), torch.tensor([math.cos(3), math.sin(3)]))


def test_frames_beyond_256_keep_their_place_in_bf16() -> None:
    """bf16 cannot tell frame 301 from 300 or 302: positions must never pass through the dtype of the weights."""
    model = tiny().bfloat16()
    x, timesteps, context = inputs(frames=1)

    def keys(first_frame: int) -> Tensor:
        history = History()
        model.forward_chunk(x, timesteps, context, first_frame=first_frame, attention=attending(history, attend_heads))
        k, _ = history.whole(0)
        assert k.dtype == torch.bfloat16
        return k.float().transpose(1, 2)

    turn = rope_table(301, 1, 2, 3, 16) / rope_table(0, 1, 2, 3, 16)
    error = (keys(301) - apply_rope(keys(0), turn)).abs().max() / keys(0).abs().max()
    assert error < 0.01  # two bf16 roundings; a frame too far would give about 1
    assert (keys(301) - keys(300)).abs().max() / keys(0).abs().max() > 0.3


def test_bf16_weights_stay_close_and_hand_out_the_right_dtypes() -> None:
    model = tiny()
    x, timesteps, context = inputs()
    exact = model(x, timesteps, context, chunk_frames=[2, 4])
    model.bfloat16()
    history = History()
    velocity, residual = model.forward_chunk(
        x, timesteps, context, first_frame=0, attention=attending(history, attend_heads), return_residual=True
    )
    assert velocity.dtype == torch.float32 and residual.dtype == torch.bfloat16
    assert {t.dtype for t in history.whole(1)} == {torch.bfloat16}
    rounded = model(x, timesteps, context, chunk_frames=[2, 4])
    assert (rounded - exact).norm() / exact.norm() < 0.02


# ---- sizes -----------------------------------------------------------------------------------------------------------


def on_meta(config: WanConfig) -> WanTransformer:
    with torch.device("meta"):
        return WanTransformer(config)


def test_skyreels_1b_has_the_official_keys_and_shapes() -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in on_meta(SKYREELS_1B).state_dict().items()}
    square, wide = (1536, 1536), (9216, 1536)
    expected = {
        "patch_embedding.weight": (1536, 16, 1, 2, 2),
        "text_embedding.0.weight": (1536, 4096),
        "text_embedding.2.weight": square,
        "time_embedding.0.weight": (1536, 256),
        "time_embedding.2.weight": square,
        "time_projection.1.weight": wide,
        "fps_projection.0.weight": square,
        "fps_projection.2.weight": wide,
        "head.head.weight": (64, 1536),
    }
    for i in range(30):
        for attention in ("self_attn", "cross_attn"):
            expected |= {f"blocks.{i}.{attention}.{name}.weight": square for name in "qkvo"}
            expected |= {f"blocks.{i}.{attention}.norm_{name}.weight": (1536,) for name in "qk"}
        expected |= {f"blocks.{i}.ffn.0.weight": (8960, 1536), f"blocks.{i}.ffn.2.weight": (1536, 8960)}
    linear = {key: shape for key, shape in expected.items() if len(shape) > 1}
    expected |= {key.replace("weight", "bias"): shape[:1] for key, shape in linear.items()}
    for i in range(30):
        expected |= {f"blocks.{i}.norm3.weight": (1536,), f"blocks.{i}.norm3.bias": (1536,)}
        expected[f"blocks.{i}.modulation"] = (1, 6, 1536)
    expected |= {"head.modulation": (1, 2, 1536), "fps_embedding.weight": (2, 1536)}
    assert shapes == expected
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e9, 4) == 1.4355


@pytest.mark.parametrize(
    "config",
    [
        SKYREELS_1B,
        WanConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40),
        WanConfig(dim=128, ffn_dim=96, num_layers=3, num_heads=1, text_dim=7, freq_dim=16, in_dim=4, out_dim=5),
    ],
)
def test_sizes_are_read_off_the_weights(config: WanConfig) -> None:
    assert WanConfig.from_state_dict(on_meta(config).state_dict()) == config


def metadata(**transformer: object) -> dict[str, str]:
    return {"config": json.dumps({"transformer": transformer})}


def test_metadata_gives_what_weights_cannot_say() -> None:
    weights = on_meta(TINY).state_dict()
    ours = metadata(num_heads=3, causal_ar=True, text_dim=20, freq_dim=32, model_type="t2v", patch=[1, 2, 2])
    assert WanConfig.from_state_dict(weights, ours) == TINY
    assert WanConfig.from_state_dict(weights, metadata(num_heads=2, eps=1e-5)) == replace(TINY, num_heads=2, eps=1e-5)


@pytest.mark.parametrize(
    ("transformer", "named"),
    [
        ({}, "dim"),  # 48 is no multiple of 128, so num_heads must come from somewhere
        ({"num_heads": 5}, "num_heads"),
        ({"num_heads": 48}, "num_heads"),
        ({"num_heads": "3"}, "num_heads"),
        ({"num_heads": 3, "text_dim": 21}, "metadata config.transformer.text_dim"),
        ({"num_heads": 3, "num_layers": 3}, "metadata config.transformer.num_layers"),
        ({"num_heads": 3, "model_type": "i2v"}, "metadata config.transformer.model_type"),
        ({"num_heads": 3, "head_count": 3}, "metadata config.transformer.head_count"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(transformer: dict[str, object], named: str) -> None:
    with pytest.raises(SettingError) as caught:
        WanConfig.from_state_dict(on_meta(TINY).state_dict(), metadata(**transformer))
    assert caught.value.field == named


@pytest.mark.parametrize("text", ["{", "[1]", '{"transformer": 3}'])
def test_metadata_must_be_json_of_the_known_form(text: str) -> None:
    with pytest.raises(SettingError, match="metadata config"):
        WanConfig.from_state_dict(on_meta(TINY).state_dict(), {"config": text})


# ---- files -----------------------------------------------------------------------------------------------------------


def save_tiny(
    path: Path, change: Callable[[dict[str, Tensor]], object] = lambda weights: None, prefix: str = ""
) -> Path:
    weights = {prefix + key: tensor.contiguous() for key, tensor in tiny().state_dict().items()}
    change(weights)
    save_file(weights, path, metadata=metadata(num_heads=3))
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_safetensors_round_trip(tmp_path: Path, prefix: str) -> None:
    x, timesteps, context = inputs()
    path = save_tiny(
        tmp_path / "wan.safetensors", lambda w: w.update({"vae.conv1.weight": torch.ones(1)} if prefix else {}), prefix
    )
    model = load_wan(path)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model(x, timesteps, context), tiny()(x, timesteps, context))
    assert load_wan(path, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("nesting", [["generator_ema"], ["ema"], ["module"], ["state_dict", "model_ema"], []])
def test_torch_file_of_a_trainer(tmp_path: Path, nesting: list[str]) -> None:
    """Such a file has no metadata, so heads have 128 dimensions."""
    x, timesteps, context = inputs()
    model = tiny(replace(TINY, dim=128, num_heads=1))
    weights = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    other = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    content: dict[str, object] = dict(weights)
    for name in reversed(nesting):
        content = {name: content, "optimizer": other, "step": 3}
    if nesting == ["generator_ema"]:
        content["generator"] = other
    torch.save(content, tmp_path / "wan.pt")
    assert torch.equal(load_wan(tmp_path / "wan.pt")(x, timesteps, context), model(x, timesteps, context))


def test_mixed_dtypes_become_one(tmp_path: Path) -> None:
    def mix(weights: dict[str, Tensor]) -> None:
        for key in weights:
            if "attn" in key:
                weights[key] = weights[key].half()

    assert {p.dtype for p in load_wan(save_tiny(tmp_path / "wan.safetensors", mix)).parameters()} == {torch.float16}


def drop(*keys: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: [weights.pop(key) for key in keys]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("patch_embedding.weight"), ["no patch_embedding.weight"]),
        (drop("blocks.0.ffn.0.weight"), ["no blocks.0.ffn.0.weight"]),
        (drop("blocks.1.norm3.bias", "head.modulation"), ["missing: blocks.1.norm3.bias, head.modulation"]),
        (
            drop(*(f"blocks.1.{a}_attn.{n}.bias" for a in ("self", "cross") for n in "qkv")),
            ["missing: blocks.1.self_attn.q.bias", "and 2 more"],
        ),
        (
            lambda w: w.update({"blocks.1.self_attn.o.weight": torch.zeros(48, 47)}),
            ["misshapen: blocks.1.self_attn.o.weight [48, 47], not [48, 48]"],
        ),
        (
            lambda w: w.update({"patch_embedding.weight": torch.zeros(48, 16)}),
            ["patch_embedding.weight: got (48, 16)", "5 dimensions"],
        ),
        (
            lambda w: w.update({"img_emb.proj.0.weight": torch.zeros(3)}),
            ["another architecture: img_emb.proj.0.weight"],
        ),
        (
            lambda w: w.update({"head.head.weight": w["head.head.weight"].to(torch.float8_e4m3fn)}),
            ["not fp32, bf16 or fp16: head.head.weight"],
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path: Path, change: Callable, words: list[str]) -> None:
    path = save_tiny(tmp_path / "bad.safetensors", change)
    with pytest.raises(SettingError) as caught:
        load_wan(path)
    for word in ("checkpoint bad.safetensors", "accepted: ", *words):
        assert word in str(caught.value)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = save_tiny(tmp_path / "wan.safetensors").read_bytes()
    torch.save({"patch_embedding.weight": torch.zeros(100)}, tmp_path / "wan.pt")
    parts = {"safetensors": whole, "pt": (tmp_path / "wan.pt").read_bytes()}
    for suffix, content in parts.items():
        for size in (0, 5, len(content) // 2, len(content) - 1):
            path = tmp_path / f"short.{suffix}"
            path.write_bytes(content[:size])
            with pytest.raises(SettingError, match=f"checkpoint short.{suffix}.*complete .safetensors"):
                read_state_dict(path)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"patch_embedding.weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(SettingError, match="checkpoint evil.pt.*runs code"):
        read_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": torch.zeros(2), "b": 3}, torch.zeros(2)])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(SettingError, match="checkpoint other.pth.*nothing but tensors"):
        read_state_dict(tmp_path / "other.pth")


def test_absent_files_and_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="existing file"):
        read_state_dict(tmp_path / "nowhere.safetensors")
    (tmp_path / "wan.gguf").write_bytes(b"GGUF")
    with pytest.raises(SettingError, match="'.gguf'"):
        read_state_dict(tmp_path / "wan.gguf")
