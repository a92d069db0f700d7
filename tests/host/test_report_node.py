"""The report node: on the run that made the latent, and at worst a sentence. It never fails the run it is about."""

from __future__ import annotations

import json
from types import SimpleNamespace

import comfy.samplers
import folder_paths
import pytest
import torch
from hostkit import NODES, SAME, close, compress, latent, load, module, node, ours, reuse, sample, sigmas_of
from PIL import ImageFont

records = module("nodes.adapters.run.records")
run_report = module("nodes.adapters.shown.run_report")
time = module("flowcache_core.report.lead").time
theme = module("nodes.adapters.shown.theme")
Page = module("nodes.adapters.shown.page").Page


@pytest.fixture(scope="module")
def plain():
    return load()


@pytest.fixture(scope="module")
def sampled(plain):
    """A model with reuse and its latents after 4 and after 6 steps."""
    model = reuse(plain, threshold=0.5)
    return model, [sample(model, sigmas=sigmas_of(model, steps), seed=steps) for steps in (4, 6)]


def report(model, samples=None):
    """(text, picture, document, ui); the class is cloned with its hidden inputs, as the host does."""
    node = type("InAGraph", (NODES["FlowCacheReport"],), {"hidden": SimpleNamespace(prompt=None, extra_pnginfo=None)})
    out = node.execute(model=model, latent={"samples": latent()["samples"] if samples is None else samples})
    text, picture, document = out.args
    assert picture.ndim == 4 and picture.shape[3] == 3 and picture.dtype == torch.float32
    (shown,) = out.ui["text"]  # the node shows the picture in place of the map of characters
    assert "chunk 0 |" not in shown and set(shown.splitlines()) <= set(text.splitlines())
    return text, picture, json.loads(document), out.ui


def the_sentence(model, samples=None):
    text, picture, document, ui = report(model, samples)
    assert "\n" not in text and document == {"notes": [text]} and len(ui["images"]) == 1
    assert float(picture.std()) > 0.01, "the sentence is not in the picture"
    return text


class TestWhoseReport:
    @pytest.mark.parametrize("output", [0, 1], ids=["output", "denoised_output"])
    @pytest.mark.parametrize(("run", "steps"), [(0, 8), (1, 12)])
    def test_it_is_of_the_run_that_made_the_latent(self, sampled, run, steps, output):
        model, outputs = sampled
        text = report(model, outputs[run][output])[0]
        assert f" of {steps} (" in text and "note: this latent" not in text

    def test_a_latent_that_went_on_has_the_latest_and_a_note(self, sampled):
        model, outputs = sampled
        text = report(model, outputs[0][0][:, :, :3])[0]
        assert " of 12 (" in text and text.endswith(
            "is no output of the model's last runs; the latest of them is shown"
        )

    def test_one_run_needs_no_note(self, plain):
        model = compress(plain, 1)
        sample(model)
        assert "note: this latent" not in report(model)[0]

    def test_a_run_of_another_sampler_is_not_mistaken_for_an_earlier_one(self, plain):
        model = reuse(plain)
        sample(model)
        out = sample(model, comfy.samplers.sampler_object("euler"), seed=5)[0]
        assert the_sentence(model, out) == records.OTHER_SAMPLER

    def test_a_run_that_failed_leaves_the_one_before(self, plain):
        model = reuse(plain, threshold=0.5)
        first = sample(model)[0]

        def fail(args):
            raise RuntimeError("another pack's fault")

        broken = model.clone()
        broken.set_model_sampler_post_cfg_function(fail)
        with pytest.raises(RuntimeError):
            sample(broken, sigmas=sigmas_of(model, 6), seed=3)
        assert " of 8 (" in report(model, first)[0]

    def test_latents_on_another_device_or_in_half_precision_are_known(self, sampled):
        model, outputs = sampled
        assert " of 8 (" in report(model, outputs[0][0].to(torch.float16))[0]

    def test_latents_that_are_not_finite_are_known(self):
        slot = records.RecordSlot()
        made = [torch.full((1, 16, 2, 4, 4), float("nan")), torch.zeros(1, 16, 2, 4, 4)]
        for number, latents in enumerate(made):
            slot.begin(autoregressive=True)
            slot.runs[-1].record = number
            slot.end(latents)
        assert [slot.report_on(latents) for latents in made] == [(run, None) for run in slot.runs]

    def test_only_the_last_runs_are_remembered(self):
        slot = records.RecordSlot()
        for number in range(100):
            slot.begin(autoregressive=True)
            slot.end(torch.full((1,), float(number)))
        assert len(slot.runs) == records.REMEMBERED


class TestWhatAPersonWantsToKnow:
    """The first lines: the choice by the name its user gave it, what was saved, how near, what next."""

    @pytest.fixture(scope="class")
    def reusing(self, plain):
        model = reuse(plain, threshold=50.0)
        return model, sample(model, sigmas=sigmas_of(model, 8), start=latent(45))[0]

    def test_no_name_of_the_packs_inside(self, reusing):
        lead = report(*reusing)[0].splitlines()[:3]
        assert lead[0].startswith("custom settings: saved ") and lead[2].startswith("Next: ")
        assert "chunkwise-" not in report(*reusing)[0] and "was not measured for these settings" in lead[1]

    def test_saved_seconds_are_those_of_the_live_map(self, reusing):
        model, out = reusing
        run = run_report.slot_of(model).run_of(out)
        found = run_report.outcome(run, run.record)
        assert found.saved == run.message["saved"] > 0 and found.reuses
        assert f"of {time(found.seconds + found.saved)}" in found.headline()

    @pytest.mark.parametrize(("megabytes", "said"), [(1000.0, "plain steps"), (None, "KV Cache Compressor")])
    def test_what_is_on_already_is_no_advice(self, megabytes, said):
        """A long video with auto (MB) that had room for everything."""
        model = NODES["FlowCacheMiniModel"].execute().args[0]
        model = NODES["FlowCacheChunkwiseReuse"].execute(model=model, preset={"preset": "mini: fast-20"}).args[0]
        if megabytes is not None:
            preset = {"preset": "auto (MB)", "megabytes": megabytes}
            method = {"method": "recent"}
            model = node("KVCompressor", model=model, budget=4.0, method=method, dtype=SAME, device=SAME, preset=preset)
        plan = {"plan": "blockwise", "chunk_frames": 3, "solver": "euler", "clean_pass": True}
        positive, negative = (node("MiniPrompt", text=text) for text in ("a red circle moving right", ""))
        start = latent(69, width=32, height=32)
        sigmas = sigmas_of(model, 20)
        out = sample(model, ours(plan), positive=positive, negative=negative, start=start, sigmas=sigmas)[0]
        assert said in report(model, out)[0].splitlines()[2]

    def test_a_preset_that_was_measured_says_how_near(self):
        model = NODES["FlowCacheMiniModel"].execute().args[0]
        chosen = NODES["FlowCacheChunkwiseReuse"].execute(model=model, preset={"preset": "mini: fast-20"}).args[0]
        plan = {"plan": "blockwise", "chunk_frames": 3, "solver": "euler", "clean_pass": True}
        texts = {"positive": node("MiniPrompt", text="a red circle moving right")}
        start = latent(21, width=64, height=64)
        out = sample(chosen, ours(plan), start=start, sigmas=sigmas_of(chosen, 20), **texts)[0]
        lead = report(chosen, out)[0].splitlines()
        assert lead[0].startswith("mini: fast-20: saved ") and " dB" in lead[0] and "K/V" in lead[0]
        assert lead[1].startswith("Beside the uncached video: ") and lead[2].startswith("Next: FlowCache Compare with ")

    def test_numbers_and_units_stay_together_and_every_sign_can_be_drawn(self):
        title = "auto (mini): saved 5 min 29 s of 7 min 57 s (3.2 x), K/V 3.3 of 5.3 MB, expected 65 dB"
        lines = theme.LIGHT.wrapped(title, theme.TITLE)
        assert len(lines) > 1 and " ".join(lines) == title and not any(line.startswith(("MB", "dB")) for line in lines)

    def test_few_steps_and_bounded_memory(self, plain):
        model = compress(plain, 1)
        out = sample(model, start=latent(57))[0]
        lead = report(model, out)[0].splitlines()
        assert lead[0].startswith("KV Cache Compressor: took ") and " of " in lead[0].partition("K/V")[2]
        assert "what bounded K/V changed" in lead[1]

    @pytest.mark.parametrize(
        ("locale", "begins"), [("zh", "下一步："), ("en", "Next: "), ("xx", "Next: "), (5, "Next: ")]
    )
    def test_in_the_language_of_the_page(self, sampled, monkeypatch, tmp_path, locale, begins):
        monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
        (tmp_path / "default").mkdir()
        (tmp_path / "default" / "comfy.settings.json").write_text(json.dumps({"Comfy.Locale": locale}))
        assert report(sampled[0], sampled[1][0][0])[0].splitlines()[2].startswith(begins)

    def test_settings_that_cannot_be_read_change_nothing(self, sampled, monkeypatch, tmp_path):
        monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
        (tmp_path / "default").mkdir()
        (tmp_path / "default" / "comfy.settings.json").write_text("{")
        assert report(sampled[0], sampled[1][0][0])[0].splitlines()[2].startswith("Next: ")

    def test_a_light_page_has_a_light_picture(self, sampled, monkeypatch, tmp_path):
        monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
        (tmp_path / "default").mkdir()
        for palette, light in (("dark", False), ("light", True)):
            (tmp_path / "default" / "comfy.settings.json").write_text(json.dumps({"Comfy.ColorPalette": palette}))
            picture = report(sampled[0], sampled[1][0][0])[1]
            assert (float(picture[0, 0].mean()) > 0.9) == light


class TestASentence:
    def test_a_model_that_came_through_no_node_of_ours(self, plain):
        sample(plain)
        assert the_sentence(plain) == records.BYPASSED

    def test_a_model_that_was_not_sampled(self, plain):
        assert the_sentence(reuse(plain)) == records.NOT_SAMPLED

    def test_a_model_before_the_patch_node(self, plain):
        before = compress(plain, 1)
        out = sample(reuse(before))[0]
        assert the_sentence(before, out) == records.NOT_SAMPLED

    @pytest.mark.parametrize("level", [0.0, 0.6])
    def test_no_step_to_take(self, plain, level):
        """And the latents go through as the host's own samplers pass them on."""
        model, start = reuse(plain), {"samples": torch.randn(1, 16, 6, 4, 8)}
        sigmas = torch.tensor([level])
        out = sample(model, sigmas=sigmas, start=start)[0]
        close(out, sample(plain, comfy.samplers.sampler_object("euler"), sigmas=sigmas, start=start)[0], 0)
        assert the_sentence(model, out) == records.NO_STEP

    @pytest.mark.parametrize("letters", [None, theme.chinese_letters()], ids=["no letters", "letters of this machine"])
    def test_pictures_are_chinese_where_there_are_letters(self, sampled, monkeypatch, letters):
        """Without them they are the English ones: a sign that cannot be drawn says nothing."""
        model, outs = sampled
        run, _ = module("nodes.adapters.run.settings").slot_of(model).report_on(outs[0][0])
        outcome = run_report.outcome(run, run.record)
        draw = module("nodes.adapters.shown.picture").draw
        english = draw(run.record, outcome.headline, Page())
        monkeypatch.setattr(theme, "chinese_letters", lambda: letters)
        chinese = draw(run.record, outcome.headline, Page("zh"))
        assert torch.equal(chinese, english) if letters is None else not torch.equal(chinese, english)

    def test_sentences_fit_into_their_picture(self, plain):
        draw = module("nodes.adapters.shown.picture").draw_sentence
        for dark in (False, True):
            picture = draw("a sentence of many words " * 20, Page(dark=dark))
            edge = picture[:, :, -12:]
            assert float(edge.max() - edge.min()) == 0, "letters reach the right edge"


class TestAPartThatFails:
    """The other parts are there, and the text says what is missing."""

    @pytest.mark.parametrize(
        ("part", "name"),
        [
            ("outcome", "outcome"),
            ("picture", "draw"),
            ("JSON", "to_json"),
            ("map", "step_map"),
            ("text", "details"),
            ("expectation", "expectation"),
        ],
    )
    def test_a_part_of_the_report(self, sampled, monkeypatch, part, name):
        def fail(*args):
            raise ImportError("No module named 'libfreetype'\nand more")

        monkeypatch.setattr(run_report, name, fail)
        text, _, document, ui = report(sampled[0], sampled[1][0][0])
        assert (
            f"No {part} in this report: ImportError: No module named 'libfreetype'" in text and "and more" not in text
        )
        assert ("chunk 0 |" in text) == (part != "map")
        assert ("computed 8 of 8 (100 %)" in text) == (part != "text")
        assert ("Next: " in text) == (part != "outcome")
        assert (document.get("total_steps") == 8) == (part != "JSON")
        assert len(ui["images"]) == 1

    def test_pillow_without_fonts(self, sampled, plain, monkeypatch):
        def fail(*args):
            raise ImportError("The _imagingft C module is not installed")

        monkeypatch.setattr(ImageFont, "load_default", fail)
        text = report(sampled[0], sampled[1][0][0])[0]
        assert "chunk 0 |" in text and "No picture in this report: ImportError: The _imagingft" in text
        assert report(plain)[0].startswith(records.BYPASSED)

    def test_a_temp_folder_that_is_a_file(self, sampled, monkeypatch, tmp_path):
        (tmp_path / "temp").write_text("")
        monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
        text, picture, document, ui = report(sampled[0], sampled[1][0][0])
        assert "No preview in this report: " in text and "images" not in ui
        assert document["total_steps"] == 8 and float(picture.std()) > 0.01

    def test_a_latent_of_another_form(self, sampled):
        text = NODES["FlowCacheReport"].execute(model=sampled[0], latent={"audio": 1}).args[0]
        assert text.startswith("No record in this report: KeyError")
