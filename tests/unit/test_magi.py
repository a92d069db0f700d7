"""The MAGI-1 transformer: against golden data, its sizes, its files, and what its parts promise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_weights import MAGI, as_recorded, magi_transformer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowcache_core.errors import SettingError
from flowcache_core.models.common.cached_attention import attending, attending_alone
from flowcache_core.models.common.operations import CastingOperations, LayerNorm1p
from flowcache_core.models.magi.config import MAGI_4_5B, MAGI_24B, MagiConfig
from flowcache_core.models.magi.guidance import (
    GuidanceScales,
    guide,
    is_nearly_clean,
    mix_nearly_clean,
    needs_alone,
    visible_chunks,
)
from flowcache_core.models.magi.layers import apply_rope, attend_grouped, rope_table, sinusoid, time_rates
from flowcache_core.models.magi.text import null_caption
from flowcache_core.models.magi.transformer import MagiTransformer, load_magi
from flowcache_core.schedule import magi_distill_times

GOLDEN = Path(__file__).parents[1] / "golden" / "magi_dit.safetensors"
TINY = MagiConfig(48, 40, 3, 6, 2, 8, 12, text_dim=20, text_len=10, freq_dim=16, bands=1)
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


ALONE = attending_alone(attend_grouped)


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


def assert_close(ours: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance


# --- golden ------------------------------------------------------------------------------------------------------


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


# --- sizes and files ---------------------------------------------------------------------------------------------


def test_official_4_5b():
    with torch.device("meta"):
        model = MagiTransformer(MAGI_4_5B)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layer = "videodit_blocks.layers.33."
    expected = {
        "x_embedder.weight": (3072, 16, 1, 2, 2),
        "t_embedder.mlp.0.weight": (768, 256),
        "t_embedder.mlp.0.bias": (768,),
        "t_embedder.mlp.2.weight": (768, 768),
        "y_embedder.y_proj_xattn.0.weight": (3072, 4096),
        "y_embedder.y_proj_adaln.0.weight": (768, 4096),
        "y_embedder.null_caption_embedding": (800, 4096),
        "rope.bands": (16,),
        layer + "ada_modulate_layer.proj.0.weight": (6144, 768),
        layer + "ada_modulate_layer.proj.0.bias": (6144,),
        layer + "self_attention.linear_qkv.layer_norm.weight": (3072,),
        layer + "self_attention.linear_qkv.layer_norm.bias": (3072,),
        layer + "self_attention.linear_qkv.q.weight": (3072, 3072),
        layer + "self_attention.linear_qkv.qx.weight": (3072, 3072),
        layer + "self_attention.linear_qkv.k.weight": (1024, 3072),
        layer + "self_attention.linear_qkv.v.weight": (1024, 3072),
        layer + "self_attention.linear_kv_xattn.weight": (2048, 3072),
        layer + "self_attention.linear_proj.weight": (3072, 6144),
        layer + "self_attention.q_layernorm.weight": (128,),
        layer + "self_attention.q_layernorm_xattn.weight": (128,),
        layer + "self_attention.k_layernorm.bias": (128,),
        layer + "self_attention.k_layernorm_xattn.bias": (128,),
        layer + "self_attn_post_norm.weight": (3072,),
        layer + "mlp_post_norm.bias": (3072,),
        layer + "mlp.layer_norm.weight": (3072,),
        layer + "mlp.linear_fc1.weight": (12288, 3072),
        layer + "mlp.linear_fc2.weight": (3072, 12288),
        "videodit_blocks.final_layernorm.weight": (3072,),
        "videodit_blocks.final_layernorm.bias": (3072,),
        "final_linear.linear.weight": (64, 3072),
    }
    assert expected.items() <= shapes.items()
    assert len(shapes) == 14 + 26 * 34
    assert sum(tensor.numel() for tensor in model.parameters()) == pytest.approx(4.460e9, rel=1e-4)


@pytest.mark.parametrize("config", [MAGI_4_5B, MAGI_24B, MAGI, TINY])
def test_sizes_follow_from_the_weights(config):
    with torch.device("meta"):
        model = MagiTransformer(config)
    assert MagiConfig.from_state_dict(model.state_dict()) == config


def test_24b_has_24_billion_parameters():
    with torch.device("meta"):
        model = MagiTransformer(MAGI_24B)
    assert 23.5e9 < sum(tensor.numel() for tensor in model.parameters()) < 24.5e9


def tiny(config: MagiConfig = TINY, **options) -> MagiTransformer:
    model = MagiTransformer(config, **options)
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = (0.3 * torch.randn(parameter.shape, generator=draw)).to(parameter.dtype)
    return model.eval().requires_grad_(False)


def tiny_inputs(batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    x, caption = torch.randn(batch, 16, 2, 4, 6, generator=draw), torch.randn(batch, 10, 20, generator=draw)
    mask = torch.zeros(batch, 10)
    for item in range(batch):
        mask[item, : 3 + item] = 1
    return x, torch.linspace(0.2, 0.6, batch), caption, mask


def forward(model: MagiTransformer, batch: int = 1, **options) -> Tensor:
    x, t, caption, mask = tiny_inputs(batch)
    return model.forward_chunk(x, t, caption, mask, first_frame=4, attention=ALONE, **options)


def test_batch_items_do_not_meet():
    model = tiny()
    together = forward(model, 3)
    x, t, caption, mask = tiny_inputs(3)
    for item in range(3):
        part = slice(item, item + 1)
        alone = model.forward_chunk(x[part], t[part], caption[part], mask[part], first_frame=4, attention=ALONE)
        assert_close(together[part], alone)


def test_masked_rows_are_not_seen_and_no_rows_is_allowed():
    model = tiny()
    x, t, caption, mask = tiny_inputs()
    changed = torch.where(mask.bool()[..., None], caption, 99.0)
    expected = model.forward_chunk(x, t, caption, mask, first_frame=0, attention=ALONE)
    assert torch.equal(model.forward_chunk(x, t, changed, mask, first_frame=0, attention=ALONE), expected)
    empty = model.forward_chunk(x, t, caption, torch.zeros_like(mask), first_frame=0, attention=ALONE)
    assert empty.isfinite().all() and not torch.allclose(empty, expected, atol=1e-3)


def test_gated_feed_forward_and_half_channels():
    config = replace(TINY, gated=True, in_dim=32, x_rescale=0.1)
    model = tiny(config)
    mlp = model.videodit_blocks.layers[0].mlp
    h = torch.randn(1, 5, 48)
    first, second = F.linear(mlp.layer_norm(h), mlp.linear_fc1.weight).split(40, -1)
    assert_close(mlp(h), F.linear(first * torch.sigmoid(first) * second, mlp.linear_fc2.weight))
    # The embedding sees the 16 channels twice, times 0.1; the last 16 of 32 output channels are dropped.
    x = tiny_inputs()[0]
    halved = tiny(replace(TINY, gated=True))
    weight = model.x_embedder.weight
    halved.x_embedder.weight.data = 0.1 * (weight[:, :16] + weight[:, 16:])
    assert_close(model.patch_tokens(x), halved.patch_tokens(x))
    before = forward(model)
    final = model.final_linear.linear.weight
    assert before.shape == x.shape
    final.data = final.unflatten(0, (4, 32)).clone().index_fill_(1, torch.arange(16, 32), 7.0).flatten(0, 1)
    assert torch.equal(forward(model), before)


def test_residual_gives_the_velocity_again():
    model = tiny()
    velocity, residual = forward(model, return_residual=True)
    assert_close(model.from_residual(tiny_inputs()[0], residual), velocity, 1e-4)


def test_fp32_parts_stay_fp32_in_bf16():
    model = tiny(dtype=torch.bfloat16)
    fp32 = {name.split(".weight")[0] for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {"x_embedder", "t_embedder.mlp.0", "final_linear.linear", "rope.bands"} <= fp32
    assert "videodit_blocks.layers.0.self_attn_post_norm" in fp32
    assert "videodit_blocks.layers.0.self_attention.q_layernorm" in fp32
    assert "videodit_blocks.layers.0.self_attention.q_layernorm_xattn" not in fp32
    assert "videodit_blocks.layers.0.self_attention.linear_proj" not in fp32
    seen = []

    def memory(layer, q, k, v):
        seen.append((q.dtype, k.dtype, v.dtype))
        return k, v

    x, t, caption, mask = tiny_inputs()
    velocity = model.forward_chunk(x, t, caption, mask, first_frame=0, attention=attending(memory, attend_grouped))
    assert seen == [(torch.bfloat16,) * 3] * 3
    expected = tiny().forward_chunk(x, t, caption, mask, first_frame=0, attention=ALONE)
    assert velocity.dtype == torch.float32
    assert (velocity - expected).norm() / expected.norm() < 0.03


def test_built_from_given_operations():
    """Every matrix of the model is made by the namespace, so a host can stream, patch and quantise it."""
    made = []

    class Operations(CastingOperations):
        class Linear(nn.Linear):
            def __init__(self, *args, **kwargs) -> None:
                super().__init__(*args, **kwargs)
                made.append(self)

    model = tiny(operations=Operations)
    assert len(made) == sum(parameter.dim() == 2 for parameter in model.parameters()) - 1  # the null caption
    assert torch.equal(forward(model), forward(tiny()))
    # Casts inside the layers make no difference in fp32, and the plain convolution is the product.
    assert_close(forward(tiny(operations=nn)), forward(tiny()))


def save_tiny(folder: Path, shards: int = 1) -> MagiTransformer:
    model = tiny(dtype=torch.bfloat16)
    tensors = model.state_dict()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return model
    names = [f"model-0000{i + 1}-of-0000{shards}.safetensors" for i in range(shards)]
    places = {key: names[i % shards] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if places[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return model


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_loads(tmp_path, shards):
    inner = tmp_path / "inference_weight.distill"
    inner.mkdir()
    expected = forward(save_tiny(inner, shards))
    for path in (tmp_path, inner):
        model = load_magi(path)
        assert model.config == TINY and model.dtype == torch.bfloat16
        assert model.final_linear.linear.weight.dtype == torch.float32
        assert_close(forward(model), expected, 1e-2)
    assert load_magi(inner, torch.float32).dtype == torch.float32


def test_prefixed_keys_load(tmp_path):
    model = tiny()
    save_file({f"model.diffusion_model.{k}": v for k, v in model.state_dict().items()}, tmp_path / "a.safetensors")
    assert_close(forward(load_magi(tmp_path / "a.safetensors")), forward(model))


def test_bad_folders_are_refused(tmp_path):
    save_tiny(tmp_path, 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(SettingError, match=r"1 of 3 shards missing: model-00002-of-00003"):
        load_magi(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(SettingError, match="same folder"):
        load_magi(tmp_path)
    index.write_text("{}")
    with pytest.raises(SettingError, match="weight_map"):
        load_magi(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SettingError, match="empty folder"):
        load_magi(empty)
    for name in ("inference_weight", "inference_weight.distill"):
        (empty / name).mkdir()
    with pytest.raises(SettingError, match=r"one of the folders in it: inference_weight, inference_weight\.distill"):
        load_magi(empty)


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"patch_embedding.weight": torch.zeros(4, 16, 1, 2, 2)}, path)
    with pytest.raises(SettingError, match="a MAGI-1 transformer"):
        load_magi(path)
    tensors = tiny().state_dict()
    tensors["videodit_blocks.layers.1.mlp.linear_fc1.weight"] = torch.zeros(41, 48)
    save_file(tensors, path)
    with pytest.raises(SettingError, match=r"layers\.1\.mlp\.linear_fc1\.weight \[41, 48\], not \[40, 48\]"):
        load_magi(path)
    tensors["videodit_blocks.layers.0.mlp.linear_fc1.weight"] = torch.zeros(60, 48)
    save_file(tensors, path)
    with pytest.raises(SettingError, match=r"60.*40 rows \(plain\), or 80 \(gated\)"):
        load_magi(path)


@pytest.mark.parametrize("shape", [(1, 8, 2, 4, 6), (1, 16, 2, 5, 6), (1, 16, 2, 4, 7), (16, 2, 4, 6)])
def test_latents_of_another_shape_are_refused(shape):
    with pytest.raises(SettingError, match="latents"):
        tiny().patch_tokens(torch.zeros(shape))


# --- parts -------------------------------------------------------------------------------------------------------


def test_grouped_attention_is_attention_with_repeated_heads():
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    expected = F.scaled_dot_product_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    assert_close(attend_grouped(q, k, v), expected, 1e-6)
    assert_close(attend_grouped(q, k[:1], v[:1])[1], attend_grouped(q[1:], k[:1], v[:1])[0])
    assert torch.equal(attend_grouped(q, k[:, :, :0], v[:, :, :0]), torch.zeros(2, 6, 5, 8))


def test_time_rates_are_rounded_right_on_every_machine():
    """Against 30 decimal digits: an fp32 exp is one bit off at some of them, at others on another processor."""
    step = torch.tensor(-math.log(10000.0), dtype=torch.float32)
    for count in (8, 128, 160):
        exponents = [Decimal((step * i / count).item()) for i in range(count)]
        with localcontext() as context:
            context.prec = 30
            expected = [exponent.exp() for exponent in exponents]
        rates = time_rates(count)
        for rate, exact in zip(rates, expected, strict=True):
            neighbours = (torch.nextafter(rate, torch.tensor(to)) for to in (0.0, 2.0))
            error = abs(Decimal(rate.item()) - exact)
            assert all(error <= abs(Decimal(other.item()) - exact) for other in neighbours)


def test_an_exp_that_rounds_otherwise_changes_no_embedding(monkeypatch):
    """As on a processor whose fp32 exp is one bit higher."""
    t = torch.tensor([0.0, 0.3, 0.9999, 8.0, 32.0])
    expected = sinusoid(t, 256)
    exp = torch.exp

    def raised(x: Tensor, *args, **options) -> Tensor:
        y = exp(x, *args, **options)
        return torch.nextafter(y, y + 1) if y.dtype == torch.float32 else y

    monkeypatch.setattr(torch, "exp", raised)
    monkeypatch.setattr(Tensor, "exp", raised)
    assert torch.equal(sinusoid(t, 256), expected)


def test_rotary_phases_depend_on_the_distance_in_time():
    bands = torch.tensor([1.0, 0.3])
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(a: int, b: int) -> Tensor:
        return (apply_rope(q, rope_table(bands, a, 1, 1, 1)) * apply_rope(k, rope_table(bands, b, 1, 1, 1))).sum()

    assert_close(product(7, 4), product(203, 200), 1e-4)
    assert abs(product(7, 4) - product(7, 2)) > 1e-2
    assert torch.equal(apply_rope(q, rope_table(bands, 5, 1, 1, 1))[..., 12:], q[..., 12:])


def test_rows_and_columns_are_centred_and_scaled():
    _, sin = rope_table(torch.tensor([1e-3]), 0, 1, 32, 32)
    rows = sin[:, 1].view(32, 32) * 1e3
    assert_close(rows[:, 0], rows[:, 31])
    # sqrt(32 * 32 / 256) = 2: the 32 rows span what 16 do at the reference size, -7.5 to 7.5
    assert_close(rows[:, 0], torch.linspace(-7.5, 7.5, 32), 1e-3)


def test_layer_norm_1p_stores_an_offset_from_one():
    norm, x = LayerNorm1p(8, 1e-6), torch.randn(4, 8)
    assert_close(norm(x), F.layer_norm(x, (8,), eps=1e-6), 1e-6)


# --- guidance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t, expected",
    [(0.0, (1.5, 7.5)), (0.02, (1.5, 7.5)), (0.1, (1.5, 7.5)), (0.2999, (1.5, 7.5)), (0.3, (1, 0)), (0.9999, (1, 0))],
)
def test_guidance_scales(t, expected):
    assert GuidanceScales().at(t) == expected


def test_branches_that_can_be_left_out():
    alone, previous, text = (torch.randn(3) for _ in range(3))
    for scales in ((1.5, 7.5), (1.0, 0.0), (1.0, 4.0), (1.5, 0.0)):
        nan = torch.full((3,), float("nan"))
        given = (alone if needs_alone(scales) else 0 * alone, previous, text)
        assert_close(guide(*given, scales), guide(alone, previous, text, scales), 1e-6)
        assert needs_alone(scales) == guide(nan * 0 + nan, previous, text, scales).isnan().any() or scales[0] == 1
    assert_close(guide(alone, previous, text, (1.0, 1.0)), text, 1e-6)


def test_step_time_of_distilled_weights():
    assert [set(magi_distill_times(steps)) for steps in (64, 32, 16, 8)] == [{32}, {16}, {8}, {4}]
    assert magi_distill_times(12)[:3] == (4, 8, 8) and magi_distill_times(12, "16,16,8")[:3] == (8, 8, 4)


def test_nearly_clean_starts_at_the_last_quarter_in_fp32():
    u = torch.linspace(0, 1, 65)
    t = u * u / 3 / (1 - 2 / 3 * u * u)
    assert not is_nearly_clean(t[47].item())
    assert is_nearly_clean(torch.tensor(0.3).item())


@pytest.mark.parametrize("step, first", [(0, 4), (7, 4), (8, 5), (16, 6), (31, 7)])
def test_visible_chunks(step, first):
    assert visible_chunks(8, step, 32, (5, 4, 3, 2)) == range(first, 9)
    assert visible_chunks(1, step, 32, (5, 4, 3, 2)).start == 0
    assert visible_chunks(8, step, 32, ()) == range(0, 9)


def test_ranges_that_do_not_fit_are_refused():
    with pytest.raises(SettingError, match="divides 12 steps"):
        visible_chunks(3, 0, 12, (5, 4, 3, 2, 1))
    with pytest.raises(SettingError, match="guidance text"):
        GuidanceScales(text=(1.0,))
