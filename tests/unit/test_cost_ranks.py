"""What the cost command says of several ranks, held against ranks that really ran."""

from __future__ import annotations

import json

import pytest
from rank_models import cases
from test_ranks import found

from flowcache_core.commands.cost import evaluate, main, parser
from flowcache_core.cost import MagiShape, WanShape
from flowcache_core.cost.ranks import Machine, Run, head_bytes
from flowcache_core.engine import generate
from flowcache_core.parallel.shape import MeshShape, mesh_from_text
from flowcache_core.report.events import CachePass, Event, StepTaken

MACHINE = Machine(1e12, 1e9, value_bytes=4)


def events_of(name: str) -> tuple[list[Event], object]:
    from rank_worker import inputs

    case, events = cases()[name], list[Event]()
    noise, prefix = inputs(case.settings)
    generate(case.denoiser, case.settings, noise, prefix=prefix, observe=events.append)
    return events, case.denoiser


def test_ranks_send_what_the_model_says(tmp_path):
    names, meshes = ("wan staggered unipc list", "wan blockwise clean"), ("2x1", "1x2")
    sent = found(",".join(meshes), tmp_path, ",".join(names))
    for name in names:
        events, denoiser = events_of(name)
        run = Run(WanShape.of(denoiser.transformer.config), events, 2, MACHINE, latent_values=16 * 4)
        for mesh in meshes:
            expected = run.on_mesh(mesh_from_text(mesh), "").sent
            assert expected == pytest.approx(sent[mesh][name]["sent"], rel=1e-6), (mesh, name)


def test_forwards_of_the_model_add_up():
    events, denoiser = events_of("wan staggered unipc list")
    run = Run(WanShape.of(denoiser.transformer.config), events, 2, MACHINE)
    steps = [e for e in events if isinstance(e, StepTaken) and e.action == "compute"]
    assert len(run.forwards) == len(steps) + sum(isinstance(e, CachePass) for e in events)
    assert run.alone == pytest.approx(run.shape.total(events) / MACHINE.flops)


def test_the_laws_of_sharing():
    events, denoiser = events_of("wan blockwise clean")
    shape = WanShape.of(denoiser.transformer.config)
    fast = Run(shape, events, 2, Machine(1e12, 1e30))
    assert fast.on_mesh(MeshShape(2, 1), "").speed_up == pytest.approx(2)
    assert fast.on_mesh(MeshShape(2, 2), "").speed_up == pytest.approx(4)
    assert fast.on_mesh(MeshShape(1, 4), "").bubbles == pytest.approx(0)
    # One chunk at a time: a pipeline has nothing to share.
    assert fast.pipeline(2).speed_up == pytest.approx(1) and fast.pipeline(2).bubbles == pytest.approx(0.5)
    three = Run(shape, events, 3, Machine(1e12, 1e30)).on_mesh(MeshShape(2, 1), "")
    assert three.speed_up == pytest.approx(1.5) and three.bubbles == pytest.approx(0.25)
    slow = Run(shape, events, 2, Machine(1e12, 1.0))
    assert slow.on_mesh(MeshShape(1, 4), "").speed_up < 1e-3


def test_a_second_forward_is_sent_too():
    events, _ = events_of("magi")
    whole = MagiShape(48, 40, 2, 16)
    half = MagiShape(48, 40, 2, 16, nearly_clean_from=4)
    assert head_bytes(whole, 100, 1) == 0
    mesh = MeshShape(1, 2)
    once, more = (Run(shape, events, 3, MACHINE).on_mesh(mesh, "").sent for shape in (whole, half))
    assert once < more < 2 * once


def result(*arguments: str) -> dict:
    return evaluate(parser().parse_args(arguments))


def test_the_command(capsys):
    ranks = result("--model", "skyreels-v2-1.3b-540p", "--preset", "causal", "--ranks", "4", "--link", "25")["ranks"]
    names = [way["name"] for way in ranks["ways"]]
    assert set(names) == {"branches x heads (2x2)", "heads", "chunk pipeline"}
    seconds = [way["seconds"] for way in ranks["ways"]]
    assert seconds == sorted(seconds)
    for way in ranks["ways"]:
        assert way["speed_up"] == pytest.approx(ranks["seconds_alone"] / way["seconds"])
        assert way["speed_up"] <= 4 and 0 <= way["bubbles"] < 1 and 0 <= way["exchanging"] < 1
    vanilla = result("--model", "skyreels-v2-1.3b-540p", "--ranks", "2")["ranks"]["ways"]
    assert {way["name"] for way in vanilla} == {"branches", "heads"}
    large = result("--model", "magi-1-24b", "--ranks", "8", "--link", "450")
    assert large["model"] == "magi-1-24b" and large["pflops"] > 2 * result("--model", "magi-1-4.5b")["pflops"]
    assert result("--model", "magi-1-4.5b")["ranks"] is None
    assert main(["--model", "magi-1-4.5b", "--ranks", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"]["ranks"] == 8


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--ranks", "7"], "ranks: got 7, accepted: 1, 2, 3, 4, 6, 8, 12, 24"),
        (["--ranks", "0"], "ranks: got 0"),
        (["--ranks", "2", "--link", "0"], "link: got 0"),
        (["--ranks", "2", "--link", "nan"], "link: got nan"),
        (["--ranks", "2", "--tflops", "-1"], "tflops: got -1"),
        (["--link", "3"], "nothing without --ranks"),
        (["--tflops", "3"], "nothing without --ranks"),
    ],
)
def test_bad_input(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(["--model", "skyreels-v2-1.3b-540p", *arguments])
    assert error.value.code == 2 and said in capsys.readouterr().err
