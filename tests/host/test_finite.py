"""Runs in the host whose values stop being finite: the video comes out, and node, report and log say since when."""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import tiny_magi
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import CurrentNodeContext
from hostkit import NODES, STAGGERED, hosts, latent, load, module, ours, prompt, reuse, sample, state_dict
from tiny_files import MINI_VAE

SettingError = module("flowcache_core.errors").SettingError
magi_sampling = module("nodes.adapters.magi.sampling")
settings = module("nodes.adapters.run.settings")
CALL = 8  # of the model: chunk 0 takes four steps and the clean pass, so this is step 2 of chunk 1
SAID = "not finite from chunk 1, step 2 on"


@pytest.fixture(scope="module")
def plain():
    return load()


def spoiled(model, call=CALL, where=...):
    """A clone whose transformer answers NaN in one call of a run."""
    clone, calls = model.clone(), []

    def wrapper(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        calls.append(None)
        if len(calls) == call:
            out = out.clone()
            out[where] = math.nan
        return out

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spoil", wrapper)
    return clone


def report(model, out):
    text, picture, document = NODES["FlowCacheReport"].execute(model=model, latent={"samples": out}).args
    return text, picture, json.loads(document, parse_constant=pytest.fail)


@pytest.mark.parametrize("sampler", [ours, hosts], ids=["ours", "the host's"])
@pytest.mark.parametrize("fields", [{}, {"threshold": 100.0, "warmup_steps": 3}], ids=["plain", "reuse"])
def test_the_run_ends_and_everything_says_since_when(plain, sampler, fields, caplog):
    model = spoiled(reuse(plain, **fields))
    with caplog.at_level(logging.WARNING):
        out = sample(model, sampler())[0]
    assert out[:, :, :3].isfinite().all() and out[:, :, 3:].isnan().all()
    assert sum(SAID in line for line in caplog.messages) == 1
    text, picture, document = report(model, out)
    assert text.splitlines()[1].startswith(f"Values are {SAID}") and "chunk 1 |" in text and "xx|" in text
    assert [(row["chunk"], row["step"]) for row in document["not_finite"]] == [(1, 2), (1, 3)]
    assert document["fault"] in text.splitlines() and document["seconds"] > 0
    red = torch.tensor(list(bytes.fromhex(module("nodes.adapters.shown.theme").DARK.cells["not finite"][1:])))
    shown = (picture[0] * 255).round().to(torch.int64)
    assert int((shown == red).all(-1).sum()) > 200 and not picture.isnan().any()


@pytest.mark.parametrize("sampler", [ours, hosts], ids=["ours", "the host's"])
def test_one_video_of_a_batch_is_named(plain, sampler):
    model = spoiled(reuse(plain), where=1)
    out = sample(model, sampler(), start=latent(batch=2))[0]
    assert out[0].isfinite().all() and out[1].isnan().any()
    _, _, document = report(model, out)
    assert document["not_finite"][0]["videos"] == [1] and "in video 1 of the batch" in document["fault"]


@pytest.mark.parametrize("branch", [0, 1])
def test_either_branch_of_guidance_counts(plain, branch):
    """The host combines them before anybody sees them apart."""
    model = spoiled(reuse(plain), where=branch)
    _, _, document = report(model, sample(model, negative=prompt(8))[0])
    first = document["not_finite"][0]
    assert (first["chunk"], first["step"], first["part"], first["branches"]) == (1, 2, "velocity", [])


@pytest.mark.parametrize("attention", ["block-causal", "bidirectional"])
def test_staggered_plans_and_windows_are_watched(plain, attention):
    model = spoiled(reuse(plain))
    out = sample(model, ours({**STAGGERED, "attention": attention}))[0]
    _, _, document = report(model, out)
    first = document["not_finite"][0]
    assert document["fault"] and first["tick"] == min(row["tick"] for row in document["not_finite"])


def test_a_good_run_says_nothing(plain):
    model = reuse(plain)
    text, _, document = report(model, sample(model)[0])
    assert "finite" not in text and document["fault"] is None and document["not_finite"] == []


def test_kv_that_is_nan_shows_at_the_step_that_reads_it(plain):
    """Call 5 is the clean pass of chunk 0: only its K/V counts, and what it answers is dropped."""
    model = spoiled(reuse(plain), call=5)
    _, _, document = report(model, sample(model)[0])
    assert document["fault"] is None
    broken = {**state_dict(), "blocks.1.self_attn.v.weight": torch.full((24, 24), math.nan)}
    model = reuse(load(broken))
    _, _, document = report(model, sample(model)[0])
    assert (document["not_finite"][0]["chunk"], document["not_finite"][0]["step"]) == (0, 0)


# -- while it runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def messages(monkeypatch, tmp_path):
    """What the browser is told of the run, in order."""
    sent: list[dict] = []

    class Server:
        client_id = "browser"
        prompt_queue = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))

        def send_sync(self, event, data, sid):
            if event == "flowcache.run":
                sent.append(data)

    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=Server())))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    with CurrentNodeContext("prompt 1", "12"):
        yield sent


def test_the_node_says_it_as_soon_as_it_is_known(plain, messages, tmp_path):
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(MINI_VAE)))
    start = latent(33, width=64, height=64)
    sample(spoiled(reuse(plain)), ours(preview_vae=vae), start=start)
    told = [message for message in messages if message["fault"]]
    assert told[0]["done"] < 12 and told[-1]["complete"]  # not only at the end
    assert SAID.endswith(f"from {told[-1]['fault']} on (NaN or infinite)") or told[-1]["fault"] in SAID
    assert any("x" in row for row in told[-1]["rows"])
    assert list(tmp_path.glob("*.mp4"))  # previews go on, such pixels black


# -- up front ---------------------------------------------------------------------------------------------------------


def nan_prompt():
    return [[prompt()[0][0] * math.nan, {}]]


@pytest.mark.parametrize("sampler", [ours, hosts], ids=["ours", "the host's"])
def test_prompts_that_are_not_finite_are_named(plain, sampler):
    model = reuse(plain)
    with pytest.raises(Exception, match=r"positive: got .*NaN of \d+ values"):
        sample(model, sampler(), positive=nan_prompt())
    assert settings.settings_of(model.model_options).slot.record is None


def test_a_negative_prompt_counts_where_it_is_run(plain):
    with pytest.raises(Exception, match="negative: got .*NaN"):
        sample(reuse(plain), negative=nan_prompt())
    assert sample(reuse(plain), negative=nan_prompt(), cfg=1.0)[0].isfinite().all()


def test_start_latents_and_prefix_that_are_not_finite_are_named(plain):
    bad = latent()
    bad["samples"] = bad["samples"].clone()
    bad["samples"][0, 3, 1, 0, 0] = math.inf
    with pytest.raises(Exception, match="latent_image: got '1 infinite of"):
        sample(reuse(plain), start=bad, sigmas=torch.tensor([0.8, 0.5, 0.0]))
    prefix = {"samples": torch.full((1, 16, 3, 4, 8), math.nan)}
    with pytest.raises(Exception, match="prefix: got '1536 NaN of 1536 values"):
        sample(reuse(plain), ours(prefix=prefix))


# -- MAGI-1 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def magi(tmp_path, monkeypatch):
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], folder_paths.supported_pt_extensions)
    )
    folder_paths.filename_list_cache.clear()
    tiny_magi.write_sharded(tmp_path / "4.5B_distill", tiny_magi.weights())
    name = "4.5B_distill/model.safetensors.index.json"
    variant = {"variant": "distilled", "nearly_clean": True, "kv_ranges": ""}
    node = NODES["FlowCacheLoadMagiModel"].execute(model_name=name, weight_dtype="default", variant=variant)
    yield node.args[0]
    folder_paths.filename_list_cache.clear()


def magi_run(model, states):
    plan = {"plan": "sliding window", "chunk_frames": 2, "window_chunks": 4, "solver": "euler", "clean_pass": True}
    sigmas = NODES["FlowCacheMagiSchedule"].execute(steps="8", shortcut_mode="8,16,16").args[0]
    start = {"samples": torch.zeros(1, 16, 8, 4, 4)}
    return sample(model, ours(plan), positive=[[states, {}]], start=start, sigmas=sigmas)[0]


def test_magi_runs_are_watched_and_checked(magi, monkeypatch, caplog):
    states = torch.randn(1, 5, tiny_magi.TEXT_DIM, generator=torch.Generator().manual_seed(5))
    with pytest.raises(Exception, match="positive: got .*NaN of"):
        magi_run(magi, states * math.nan)
    compute = magi_sampling.HostMagiDenoiser.compute

    def broken(self, item, cache, *, keep_residual=False):
        output = compute(self, item, cache, keep_residual=keep_residual)
        here = (item.chunk.index, item.step) == (1, 2)
        return replace(output, velocity=output.velocity * math.nan) if here else output

    monkeypatch.setattr(magi_sampling.HostMagiDenoiser, "compute", broken)
    model = reuse(magi)
    with caplog.at_level(logging.WARNING):
        out = magi_run(model, states)
    assert out[:, :, 2:4].isnan().all() and sum(SAID in line for line in caplog.messages) == 1
    text, _, document = report(model, out)
    assert f"values were {SAID}" in text and document["not_finite"][0]["step"] == 2
