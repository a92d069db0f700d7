"""FlowCache Sparse Attention on the real host: what it leaves out, what it goes with, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
from hostkit import (
    BLOCKWISE,
    NODES,
    STAGGERED,
    compress,
    hosts,
    latent,
    load,
    module,
    node,
    ours,
    prompt,
    reuse,
    sample,
)

SettingError = module("flowcache_core.errors").SettingError
last_record = module("nodes.adapters.run.settings").last_record
settings_of = module("nodes.adapters.run.settings").settings_of
host_sparse = module("nodes.adapters.run.sparse")
chinese = module("nodes.adapters.shown.said").chinese
gain = module("flowcache_core.cost.sparse_gain")
# A chunk has 3 frames of 8 tokens; the video 6 chunks.
FIELDS = {"preset": "xattention", "p": 0.6, "block": 8, "stride": 4}
BASE = {"dense_chunks": 1, "dense_steps": 0, "engine": "auto", "mask_reuse": False}
LONG = 81  # pixel frames: 21 latent ones


@pytest.fixture(scope="module")
def model():
    return load()


def sparse(model: Any, preset: dict[str, Any] | None = None, **fields: Any) -> Any:
    return node("SparseAttention", model=model, preset=preset or FIELDS, **{**BASE, **fields})


@pytest.mark.parametrize("plan", [BLOCKWISE, STAGGERED], ids=lambda plan: plan["plan"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_keeping_everything_changes_no_bit(model, plan, cfg):
    more = {"start": latent(LONG), "negative": prompt(9) if cfg > 1 else None, "cfg": cfg}
    plain = sample(model, ours(plan), **more)[0]
    for preset in ({**FIELDS, "p": 1.0}, {"preset": "top-k", "density": 1.0, "block": 8, "stride": 4}):
        assert torch.equal(sample(sparse(model, preset, dense_chunks=0), ours(plan), **more)[0], plain)


@pytest.mark.parametrize("again", [False, True])
def test_first_chunks_stay_and_later_ones_are_sparse(model, again):
    more = {"start": latent(LONG), "negative": prompt(9)}
    plain, patched = sample(model, **more)[0], sparse(model, mask_reuse=again, drift=0.5)
    out = sample(patched, **more)[0]
    same = [torch.equal(a, b) for a, b in zip(out.split(3, 2), plain.split(3, 2), strict=True)]
    assert same[0] and not any(same[1:])
    record = last_record(patched)
    assert {event.chunk for event in record.densities} == set(range(1, 7))
    assert 0 < record.attention_density < 1
    assert (sum(event.masks_served for event in record.densities) > 0) == again
    assert any("sparse attention: attention is" in note and "computed" in note for note in record.notes)


def test_it_is_what_the_core_computes(model):
    """The host's model through the guider against attention by definition under the same masks."""
    attention = module("nodes.adapters.wan.attention")
    method = module("flowcache_core.sparse.xattention").XAttention(8, 0.6, 4)
    worst, original = [], attention.ChunkAttention.attention

    def watched(self, layer, run, qkv, heads, kwargs, fused):
        inner = self.sparse
        if inner is None:  # what leaves nothing out is asked as without it
            return original(self, layer, run, qkv, heads, kwargs, fused)

        def attend(layer, branches, q, k, v, dense, **rest):
            out = inner.attend(layer, branches, q, k, v, dense, **rest)
            kept = method.mask(q, k, layer).kept.repeat_interleave(8, 2).repeat_interleave(8, 3)
            expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, kept)
            worst.append(float((out - expected).abs().max()))
            return out

        return original(replace(self, sparse=SimpleNamespace(attend=attend)), layer, run, qkv, heads, kwargs, fused)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.ChunkAttention, "attention", watched)
        sample(sparse(model), start=latent(LONG))
    assert len(worst) > 10 and max(worst) < 1e-5


def test_it_goes_with_reuse_and_a_budget(model):
    patched = sparse(compress(reuse(model, threshold=1.5), 3))
    out = sample(patched, start=latent(LONG), negative=prompt(9))[0]
    record = last_record(patched)
    assert out.isfinite().all() and record.reused_steps > 0 and record.compressions and record.densities


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "fields", "said"),
    [
        ({**FIELDS, "block": 128, "stride": 16}, {}, "block"),
        ({**FIELDS, "stride": 3}, {}, "stride"),
        ({**FIELDS, "p": 1.5}, {}, "p"),
        ({**FIELDS, "preset": "quest"}, {}, "preset"),
        ({"preset": "mini: per-head", "density": 0.5}, {}, "table"),
        ({"preset": "top-k", "density": 0.1, "block": 8, "stride": 4}, {"dense_chunks": 4}, "density"),
    ],
)
def test_what_cannot_work_names_node_and_field(model, preset, fields, said):
    with pytest.raises(SettingError) as error:
        sample(sparse(model, preset, **fields), start=latent(LONG))
    assert f"FlowCache Sparse Attention, {said}" in str(error.value)


def test_bidirectional_attention_and_the_hosts_sampler_are_refused(model):
    plan = {**STAGGERED, "attention": "bidirectional"}
    with pytest.raises(SettingError, match="FlowCache Sparse Attention, sparse"):
        sample(sparse(model), ours(plan))
    with pytest.raises(SettingError, match="FlowCache Sparse Attention"):
        sample(sparse(model), hosts())


def test_two_of_them_are_refused(model):
    with pytest.raises(SettingError, match="already has FlowCache Sparse Attention"):
        sparse(sparse(model))


def radial_sparse_attention(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def plain_override(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


plain_override.__module__ = "other_pack.attention"


def test_another_nodes_sparse_attention_is_refused_before_and_behind(model):
    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = radial_sparse_attention
    with pytest.raises(SettingError, match="radial_sparse_attention"):
        sparse(other)
    behind = sparse(model).clone()
    behind.model_options["transformer_options"]["optimized_attention_override"] = radial_sparse_attention
    with pytest.raises(SettingError, match="radial_sparse_attention"):
        sample(behind)


def test_another_override_computes_what_stays_dense(model):
    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = plain_override
    patched = sparse(other)
    assert torch.equal(sample(patched, start=latent(LONG))[0], sample(sparse(model), start=latent(LONG))[0])
    assert any("plain_override" in note for note in last_record(patched).notes)


# -- what it says ------------------------------------------------------------------------------------------------------


def test_the_node_says_what_to_expect_by_card(model):
    shown = NODES["FlowCacheSparseAttention"].execute(model=model, preset=FIELDS, **BASE).ui.as_dict()["text"][0]
    assert all(card.name in shown for card in gain.CARDS) and "720" in shown and "not measured" in shown


def test_with_sage_attention_it_says_that_it_does_not_pay(model, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "sage_attention_enabled", lambda: True)
    patched = sparse(model)
    sample(patched, start=latent(LONG))
    assert any("no gain" in note and "SageAttention" in note for note in last_record(patched).notes)


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        (FIELDS, "xattention, density about 0.35 where it is sparse (measured at p 0.9, a higher p keeps more); "),
        ({**FIELDS, "p": 0.99}, "density about 0.35 where it is sparse (measured at p 0.9, a higher p keeps more); "),
        ({**FIELDS, "p": 1.0}, "xattention, density 1, nothing is left out; "),
        (
            {"preset": "top-k", "density": 0.6, "block": 8, "stride": 4},
            "top-k, density 0.6 of the whole run, what stays dense included: lower where it is sparse; ",
        ),
        (
            {"preset": "window", "density": 0.6, "block": 8},
            "window, density 0.6 of the whole run, what stays dense included: lower where it is sparse; ",
        ),
    ],
)
def test_the_node_says_what_its_density_is_of(model, preset, said):
    patched = sparse(model, preset)
    text = host_sparse.described(settings_of(patched.model_options).sparse, patched.model.diffusion_model)
    assert said in text
    for line in text.split("\n"):
        turned = chinese(line)
        assert turned != line and "density" not in turned, turned


def test_a_density_that_is_another_models_is_told_as_such_before_the_run(model):
    told = "sparse attention: density 0.35 was measured at p 0.9; a higher p keeps more"
    for preset, here in ((FIELDS, True), ({"preset": "top-k", "density": 0.6, "block": 8, "stride": 4}, False)):
        patched = sparse(model, preset)
        sample(patched, start=latent(LONG))
        assert (told in last_record(patched).notes) == here
