"""What a config needs on devices that are not here."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from jaxclf.config import loading
from jaxclf.data import loader
from jaxclf.models import registry
from jaxclf.planning import (
    collectives,
    estimate,
    gpus,
    hardware,
    hlo,
    plans,
    programs,
    step_time,
    workload,
)
from jaxclf.planning.collectives import Collective, Crossing
from jaxclf.planning.estimate import PlannedRun
from jaxclf.runs import setup as preparation

ROOT = Path(__file__).parents[2]
SMOKE = "configs/llama3_8b_20ng.py:smoke"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu"
)
needs_plugin = pytest.mark.skipif(
    not gpus.can_compile(), reason="compiling for a GPU needs jax's plugin for CUDA"
)
ONE = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jaxclf.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)


def job(name: str, topology: str, *fields: str) -> PlannedRun:
    return PlannedRun(
        loading.load(str(ROOT / "configs" / name), fields), hardware.topology(topology)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "memory"),
    [
        ("h100:2", gpus.GPUS["h100"].memory),
        pytest.param("v5e:2x2", 16 * 2**30, marks=needs_libtpu),
    ],
)
def test_plan_of_a_mesh_that_is_searched(tmp_path, topology, memory):
    output = tmp_path / "plan.json"
    arguments = ["--config", SMOKE, "--config.train.batch_size=4", "--topology", topology]
    done = run(*arguments, "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("fits")
    found = json.loads(output.read_text())
    assert found["fits"]
    assert found["estimated"] == (topology == "h100:2" and not gpus.can_compile())
    assert found["memory_gib"] == pytest.approx(memory / 2**30)
    for program in ("train_step", "decoding"):
        assert 0 < found[program]["reserved_gib"] < 1
        assert found[program]["tflop"] > 0
        assert found[program]["seconds_overlapped"] <= found[program]["seconds_in_turn"]
    times = [choice["estimated_seconds"] for choice in found["ranking"]]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5p:4x4"], "has 3 dimensions"),
        (["--topology", "v9:2x2"], "known: v5e"),
        (["--topology", "h100:8", "--mesh", "model=8"], "axes are data, fsdp, tensor, sequence"),
        (["--topology", "h100:8", "--mesh", "fsdp=3"], "do not make 8 devices"),
        (["--mesh", "fsdp=8"], "need a --topology"),
        (["--label-tokens", "0"], "expected 1 or more"),
        (["--topology", "h100:12"], "a host has 8 GPUs of kind h100"),
        (["--topology", "gb200:80"], "a node has 72 GPUs of kind gb200"),
        (["--topology", "rtx4090:16"], "rtx4090 has no network"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, message):
    done = run("--config", SMOKE, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_model_that_is_too_large_is_refused_by_arithmetic_alone():
    found = plans.plan(
        loading.load(str(ROOT / "configs/llama3_70b_20ng.py")),
        hardware.topology("v5e:2x2"),
        None,
        None,
    )
    assert not found.fits
    assert "does not fit on v5e:2x2" in found.table()
    assert "--topology auto" in found.table()


def test_bytes_of_parameters_and_optimizer_are_exact():
    need = job("llama3_8b_20ng.py", "v5p:2x2x1").need(
        {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}, 1
    )
    values = 8_030_261_248
    assert need.parameters == pytest.approx(4 * values / 4, rel=1e-4)
    assert need.optimizer == pytest.approx(8 * values / 4, rel=1e-4)


def test_an_encoder_with_a_decoder_needs_room_for_its_scores():
    """Parameters are exact; attention that no kernel computes grows with the square."""
    sizes = {"data": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
    short, long = (
        job(
            "flan_t5_xxl_20ng.py", "h100:8", f"train.max_length={length}", "model.attention=plain"
        ).need(sizes, 1)
        for length in (2_048, 4_096)
    )
    assert short.parameters == pytest.approx(4 * 11_135_332_352 / 8, rel=1e-4)
    assert long.activations > 2.5 * short.activations


def test_adapters_need_less_than_full_tuning_and_a_quantised_base_less_than_a_plain_one():
    sizes = {"data": 1, "fsdp": 8, "tensor": 4, "sequence": 1}
    full, low, quantised = (
        job(f"llama3_70b_20ng.py{variant}", "v5p:4x4x2").need(sizes, 1)
        for variant in ("", ":lora", ":qlora")
    )
    assert low.total < 0.4 * full.total
    assert quantised.total < low.total
    assert quantised.parameters < 0.35 * low.parameters


def test_more_micro_batches_need_less_for_activations():
    whole = job("llama3_8b_20ng.py", "v5p:2x2x1")
    sizes = {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 1}
    once, four = (whole.need(sizes, count) for count in (1, 4))
    assert four.activations < 0.5 * once.activations


def test_flops_count_a_scanned_body_as_often_as_it_runs():
    def function(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    traced = jax.make_jaxpr(function)(jnp.zeros((3, 5)), jnp.zeros((7, 5, 5)))
    assert programs.flops(traced.jaxpr, 1) == 7 * 2 * 3 * 5 * 5


PROGRAM = """
HloModule step

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%arg), index=1
  %gathered = f32[16,8]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  %y = f32[4,8]{1,0} fusion(%gathered, %x), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[4,8]) tuple(%i, %y)
}

%condition (arg: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %loop = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body
  %z = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = f32[4,8]{1,0} all-reduce(%z), channel_id=2, to_apply=%add
}
"""


def test_traffic_of_a_loop_counts_as_often_as_it_runs():
    found = hlo.traffic(PROGRAM)
    assert found.collectives == {"all-gather": 10 * 16 * 8 * 4, "all-reduce": 4 * 8 * 4}
    assert found.counts == {"all-gather": 10, "all-reduce": 1}
    assert found.memory == 10 * 4 * (4 * 8 + 16 * 8 + 4 * 8)
    assert found.asynchronous == {"all-gather": 0, "all-reduce": 0}


def test_gathered_shapes_are_those_of_all_gathers_alone():
    assert hlo.gathered(PROGRAM) == {(16, 8)}
    assert (4, 8) in hlo.shapes(PROGRAM)


# Of XLA:GPU, cut to what is read.
GPU_PROGRAM = """
HloModule step

%wrapped (p.1: bf16[8,16]) -> bf16[2,16] {
  %p.1 = bf16[8,16]{1,0} parameter(0)
  ROOT %rs = bf16[2,16]{1,0} reduce-scatter(%p.1), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%body (arg: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %arg = (s32[], bf16[2,16]) parameter(0)
  %x = bf16[2,16]{1,0} get-tuple-element(%arg), index=1
  %s = ((bf16[2,16]{1,0}), (bf16[8,16]{1,0})) all-gather-start(%x), AXIS, ASYNC
  %a = bf16[2,16]{1,0} custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax"
  %g = bf16[2,16]{1,0} fusion(%x), kind=kCustom, TRITON
  %done = (bf16[8,16]{1,0}) all-gather-done(%s)
  %r = bf16[2,16]{1,0} all-reduce-start(%a), replica_groups={}, SYNC
  %rd = bf16[2,16]{1,0} all-reduce-done(%r)
  ROOT %out = (s32[], bf16[2,16]) tuple(%i, %rd)
}

%condition (arg: (s32[], bf16[2,16])) -> pred[] {
  %limit = s32[] constant(99)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[2,16]) -> bf16[2,16] {
  %p = bf16[2,16]{1,0} parameter(0)
  %loop = (s32[], bf16[2,16]) while(%start), condition=%condition, body=%body, THRICE
  %b = bf16[8,16]{1,0} fusion(%p), kind=kLoop, calls=%fused
  %as = ((bf16[8,16]{1,0}), bf16[2,16]{1,0}) async-start(%b), calls=%wrapped
  ROOT %ad = bf16[2,16]{1,0} async-done(%as)
}
"""
for short, whole in {
    "AXIS": "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}",
    "ASYNC": 'backend_config={"collective_backend_config":{"is_sync":false}}',
    "SYNC": 'backend_config={"collective_backend_config":{"is_sync":true}}',
    "THRICE": 'backend_config={"known_trip_count":{"n":"3"}}',
    "TRITON": 'backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}',
}.items():
    GPU_PROGRAM = re.sub(rf"\b{short}\b", whole, GPU_PROGRAM)


TPU_PROGRAM = """HloModule program

%begun (a: bf16[2,16]) -> (bf16[8,16], s32[2]) {
  %a = bf16[2,16]{1,0} parameter(0)
  %g = bf16[8,16]{1,0} all-gather(%a), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %start = (bf16[8,16]{1,0}, s32[2]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%ended (a: bf16[8,16]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %g = bf16[8,16]{1,0} all-gather(%a), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %done = bf16[8,16]{1,0} custom-call(%a, %g), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[2,16]) -> bf16[8,16] {
  %p = bf16[2,16]{1,0} parameter(0)
  %first = (bf16[8,16]{1,0}, s32[2]) fusion(%p), kind=kOutput, calls=%begun
  ROOT %last = bf16[8,16]{1,0} fusion(%first), kind=kOutput, calls=%ended
}
"""


def test_a_collective_within_fusions_counts_once_and_beside_computation():
    found = hlo.traffic(TPU_PROGRAM, 8)
    assert found.collectives == {"all-gather": 8 * 16 * 2}
    assert found.counts == found.asynchronous == {"all-gather": 1}
    assert len(found.exchanges[0].groups) == 2


def test_collectives_that_start_and_end_count_once_with_their_results():
    found = hlo.traffic(GPU_PROGRAM, 8)
    assert found.collectives == {
        "all-gather": 3 * 8 * 16 * 2,
        "all-reduce": 3 * 2 * 16 * 2,
        "reduce-scatter": 2 * 16 * 2,
    }
    assert found.counts == {"all-gather": 3, "all-reduce": 3, "reduce-scatter": 1}
    assert found.asynchronous == {"all-gather": 3, "all-reduce": 0, "reduce-scatter": 1}
    assert found.kernels == {"__cudnn$fmhaSoftmax": 3, "__triton_gemm": 3}
    groups = {each.kind: each.groups for each in found.exchanges}
    assert groups["all-reduce"] == (tuple(range(8)),)
    assert groups["all-gather"] == groups["reduce-scatter"] == ((0, 2, 4, 6), (1, 3, 5, 7))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", ((0, 1), (2, 3))),
        ("replica_groups={}, to_apply=%add", ((0, 1, 2, 3),)),
        ("channel_id=1, to_apply=%add", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh[a=4], device_ids=(0,2,1,3) {a:(2)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("source_target_pairs={{0,1},{1,0}}, metadata={}", ((0, 1), (1, 0))),
    ],
)
def test_groups_are_read_in_every_form(text, expected):
    assert collectives.groups(text, 4) == expected


def test_the_axes_of_groups_are_those_that_their_devices_differ_in():
    sizes = ONE | {"data": 2, "fsdp": 2, "tensor": 2}
    assert collectives.axes(((0, 4), (1, 5)), sizes) == "data"
    assert collectives.axes(((0, 1, 2, 3), (4, 5, 6, 7)), sizes) == "fsdp+tensor"
    assert collectives.axes(((0,), (1,)), sizes) == ""
    for axes in (("data",), ("fsdp", "tensor"), ("data", "tensor")):
        assert collectives.axes(collectives.over(axes, sizes), sizes) == "+".join(axes)


@pytest.mark.parametrize(
    ("kind", "groups", "expected"),
    [
        ("all-gather", ((0, 1, 2, 3),), Crossing(75, 0)),
        ("all-gather", ((0, 1, 2, 3, 4, 5, 6, 7),), Crossing(87.5, 12.5)),  # each sends a 4th of 50
        ("all-gather", ((0, 4), (1, 5)), Crossing(0, 50)),
        ("reduce-scatter", ((0, 1, 2, 3),), Crossing(300, 0)),
        ("all-reduce", ((0, 4),), Crossing(0, 100)),
        ("all-reduce", ((0, 1),), Crossing(100, 0)),
        ("all-to-all", ((0, 1, 4, 5),), Crossing(25, 50)),
        ("collective-permute", ((0, 1), (1, 0)), Crossing(100, 0)),
        ("collective-permute", ((0, 4), (4, 0)), Crossing(0, 100)),
        ("collective-permute", ((0, 0),), Crossing(0, 0)),
    ],
)
def test_what_crosses_the_network_is_what_leaves_a_node(kind, groups, expected):
    """Nodes of 4 devices, and 100 bytes as each device's result."""
    assert collectives.crossing(Collective(kind, 50, 2, True, groups), 4) == expected


def test_an_axis_that_crosses_nodes_is_ranked_behind_one_that_does_not():
    """Full tuning of 8B: gathering kernels over two nodes takes longer than within each."""
    found = job("llama3_8b_20ng.py", "h100:16", "train.batch_size=16", "train.max_length=1024")
    seconds = {
        name: step_time.step_seconds(found, ONE | sizes, 1)
        for name, sizes in {
            "within": {"data": 2, "fsdp": 8},
            "across": {"fsdp": 16},
            "tensor across": {"tensor": 16},
        }.items()
    }
    assert seconds["within"] < seconds["across"] < seconds["tensor across"]


def test_tokens_that_a_mesh_does_not_divide_count_whole():
    sizes = ONE | {"tensor": 8, "sequence": 2}
    assert estimate._divided(16_416, sizes, "between") == 16
    assert estimate._divided(16_414, sizes, "between") == 2
    assert estimate._divided(16_415, sizes, "between") == 1


LAYER = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14_336 + 2 * 4096  # values of llama3_8b's
GIVEN = 2 * 4096 + 4096 + 2 * 1024 + 2 * 14_336  # by a layer's products, of which o and down whole


@pytest.mark.parametrize(
    ("cut", "fields", "kept"),
    [
        # The inputs of 32 layers, of 2 · 1,024 tokens on 2 chips.
        ({"tensor": 2}, (), 32 * 1024 * 4096 * 2),
        # Of 8 groups, and of the 4 layers of one.
        ({"tensor": 2}, ("model.checkpoint_layers=4",), 12 * 1024 * 4096 * 2),
        # The same, and what products and attention gave.
        (
            {"tensor": 2},
            ("model.gradient_checkpointing=False",),
            32 * 1024 * 4096 * 2 + 32 * 2048 * ((GIVEN + 2 * 4096) // 2 + 2048) * 2,
        ),
        ({"sequence": 2}, (), 32 * 1024 * 4096 * 2),
    ],
)
def test_bytes_of_a_step_by_hand(cut, fields, kept):
    """Full tuning of 8B on 8 chips: 16 rows of 1,024 tokens in two micro-batches."""
    rows = ("train.batch_size=16", "train.max_length=1024", "train.pack=False")
    need = job("llama3_8b_20ng.py", "h100:8", *rows, *fields).need(ONE | {"fsdp": 4} | cut, 2)
    tensor = cut.get("tensor", 1)
    tokens = 2 * 1024 * tensor // 2
    within = tokens * (2 * 4096 + 5 * 14_336 // tensor) * 2
    assert need.activations == within + kept + 3 * LAYER * 2 // tensor
    # Each of 8 chips has an eighth of all, but norms; gradients are in bfloat16, their sum is not.
    kernels = 4 * (32 * (LAYER - 2 * 4096) + 4096 * 128_256) // 8
    assert need.gradients == 2 * need.parameters - kernels // 2
    assert need.total == need.parameters + need.optimizer + need.gradients + need.activations


def test_scores_need_room_where_attention_makes_them():
    """T5's, forward and backward, with their weights: by a kernel those of 128 queries at once."""
    rows = ("train.batch_size=16", "train.max_length=1024")
    sizes, tokens, heads = ONE | {"fsdp": 4, "tensor": 2}, 2 * 1024, 64 // 2
    within = tokens * (2 * 4096 + 5 * 10_240 // 2) * 2
    layer = 4 * 4096 * 4096 + 3 * 4096 * 10_240 + 2 * 4096
    for attention, at_once in (("cudnn", 2 * 128), ("plain", tokens)):
        planned = job("flan_t5_xxl_20ng.py", "h100:8", *rows, f"model.attention={attention}")
        scores = 3 * at_once * 1024 * heads * 4
        kept = 24 * tokens // 2 * 4096 * 2
        found = planned.need(sizes, 2).activations
        assert found == pytest.approx(within + scores + kept + 3 * layer * 2 / 2, rel=1e-6)


def test_where_nothing_is_computed_again_every_layer_keeps_what_is_within():
    rows = ("train.batch_size=16", "train.max_length=1024", "model.gradient_checkpointing=False")
    planned = job("llama3_8b_20ng.py", "h100:8", *rows, "model.attention=plain")
    within = 2 * 1024 * (2 * 4096 + 5 * 14_336 // 2) * 2
    found = planned.need(ONE | {"fsdp": 4, "tensor": 2}, 2).activations
    assert found == 32 * within + 3 * LAYER * 2 // 2


def test_dropout_of_adapters_needs_room_while_it_is_drawn():
    """Of the widest input, feed-forward's, which tensor divides: 2 bfloat16, 2 words, a flag."""
    dropped, whole = (
        job("llama3_8b_20ng.py:lora", "h100:8", f"lora.dropout={rate}").need(
            ONE | {"fsdp": 4, "tensor": 2}, 1
        )
        for rate in (0.05, 0.0)
    )
    assert dropped.activations - whole.activations == 2 * 16_384 * 14_336 // 2 * 13


def test_a_program_has_the_memory_that_no_context_takes():
    chip = hardware.topology("h100:8").chip
    assert 76 < chip.usable / 2**30 < chip.memory / 2**30 - 1
    assert hardware.topology("v5e:2x2").chip.usable == 16 * 2**30
    assert hardware.topology("h100:64").nodes == 8
    assert hardware.topology("gb200:72").nodes == 1


def read(name: str, *fields: str) -> tuple:
    fields = ("data.name=builtin", "data.limit=48", "train.batch_size=4", *fields)
    loaded = loading.load(str(ROOT / "configs" / name), fields)
    return loaded, workload.read(loaded, registry.find(loaded.model.name))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama3_8b_massive.py:smoke", ()),
        ("llama3_8b_massive.py:smoke", ("train.gradient_accumulation_steps=2",)),
        ("llama3_8b_massive.py:smoke", ("train.share_prefix=False",)),
        ("tiny_llama_massive.py:smoke", ("train.max_length=256",)),
        ("roberta_base_massive.py:smoke", ("train.max_length=64",)),
        ("flan_t5_base_massive.py:smoke", ()),
        ("flan_t5_base_massive.py:smoke", ("model.output=head", "train.pack=True")),
    ],
)
def test_the_planned_batch_has_room_for_every_batch_of_the_run(tmp_path, name, fields):
    loaded, found = read(name, *fields)
    train = loaded.train
    setup = preparation.prepare(loaded, tmp_path, None)
    batches = loader.train_batches(
        setup.examples,
        batch_size=train.batch_size,
        seed=0,
        row_length=(train.row_length or train.max_length) if train.pack else 0,
        shared=setup.shared,
        groups=train.gradient_accumulation_steps,
    )
    planned = found.batch(loaded)
    widest: dict[str, int] = {}
    for _ in range(-(-len(setup.examples) // train.batch_size)):  # an epoch
        batch = next(batches)
        assert jax.tree.structure(batch) == jax.tree.structure(planned)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            name = jax.tree_util.keystr(path)
            widest[name] = max(widest.get(name, 0), leaf.shape[1])
    for path, leaf in jax.tree_util.tree_leaves_with_path(planned):
        assert leaf.shape[0] == train.batch_size
        assert leaf.shape[1] == widest[jax.tree_util.keystr(path)]


def test_steps_that_are_shorter_than_planned_are_told():
    """Without packing rows are those of the longest texts, and the mean is said."""
    line = (
        "  rows are those of the longest texts; the mean has 1,234 tokens, so that most steps are"
    )
    for pack, mean, said in ((False, 1234.4, True), (True, 1234.4, False), (False, None, False)):
        planned = job("llama3_8b_20ng.py", "h100:1", f"train.pack={pack}")
        shown = plans._head(planned, ONE, 1, mean)
        assert any(each.startswith(line) for each in shown) == said


def test_what_is_not_here_is_stood_in_for_and_said(monkeypatch):
    monkeypatch.delenv("JAXCLF_DATA_ROOT", raising=False)
    loaded = loading.load(str(ROOT / "configs/llama3_8b_20ng.py:five_shot"), ["data.root=nowhere"])
    found = workload.read(loaded, registry.find("llama3_8b"))
    data, tokenizer = found.notes
    assert "20newsgroups/train.jsonl.gz does not exist" in data
    assert "the tokenizer of meta-llama/Meta-Llama-3-8B is not here" in tokenizer
    batch = found.batch(loaded)
    assert batch.tokens.shape == (8, 16_384)
    assert batch.prefixes is not None
    (prompt, shared), rows = found.prompt_batch(8), PlannedRun(loaded, hardware.topology("h100:8"))
    assert prompt.tokens.shape == (8, 16_384)
    assert shared.lengths[1] > 1_000  # the instructions and five posts
    assert rows.rows(1).prefix == 0  # nothing was read
    sharing = PlannedRun(loaded, hardware.topology("h100:8"), workload=found)
    assert sharing.rows(1).prefix >= shared.lengths[1]
    assert sharing.rows(8).prefix == 0  # a micro-batch of one row shares nothing
    sizes = ONE | {"fsdp": 8}
    assert sharing.need(sizes, 1).activations > rows.need(sizes, 1).activations


@pytest.mark.parametrize(
    ("name", "fields", "with_data", "without"),
    [
        ("llama3_8b_massive.py:smoke", (), {"decoding"}, {"decoding"}),
        (
            "llama3_8b_massive.py:smoke",
            ("eval.decoding=score",),
            {"reading", "scoring"},
            {"decoding"},
        ),
        ("roberta_base_massive.py:smoke", ("train.max_length=64",), {"prediction"}, set()),
        ("flan_t5_base_massive.py:smoke", (), {"decoding"}, {"decoding"}),
        (
            "attens_bert_base.py:smoke",
            ("data.name=builtin", "data.task=intent"),
            {"features", "combiner"},
            {"features", "combiner"},
        ),
    ],
)
def test_the_programs_of_a_run_are_those_that_it_will_compile(name, fields, with_data, without):
    planned = job(name, "h100:4", *fields)
    assert programs.of(planned, ONE, 1).keys() == {"train_step", *without}
    planned.workload = Mock(workload.Workload)
    assert programs.of(planned, ONE, 1).keys() == {"train_step", *with_data}


def compiled(name: str, topology: str, mesh: str, *fields: str) -> dict[str, programs.Program]:
    """Every program of a config with the built-in data."""
    loaded, found = read(name, "model.dtype=bfloat16", *fields)
    top = hardware.topology(topology)
    planned = PlannedRun(loaded, top, workload=found)
    sizes = plans.read_mesh(mesh, top)
    return {name: make() for name, make in programs.of(planned, sizes, 1).items()}


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("llama3_8b_massive.py:smoke", (), {"train_step", "decoding"}),
        ("llama3_8b_massive.py:smoke,lora", ("eval.decoding=constrained",), {"decoding"}),
        ("llama3_8b_massive.py:smoke", ("eval.decoding=score",), {"reading", "scoring"}),
        ("roberta_base_massive.py:smoke", ("train.max_length=64",), {"prediction"}),
        ("flan_t5_base_massive.py:smoke", (), {"decoding"}),
        ("flan_t5_base_massive.py:smoke", ("model.output=head",), {"prediction"}),
        ("attens_bert_base.py:smoke", ("data.task=intent",), {"features", "combiner"}),
    ],
)
def test_every_program_of_a_run_compiles_for_gpus(name, fields, expected):
    found = compiled(name, "h100:4", "fsdp=2,tensor=2", *fields)
    assert {"train_step", *expected} == found.keys() | {"train_step"}
    for program in found.values():
        assert 0 < program.peak < 2**30
        assert program.traffic.memory > 0
    step = found["train_step"].traffic
    assert step.collectives
    assert all(sorted({len(group) for group in each.groups}) for each in step.exchanges)


@needs_plugin
@pytest.mark.slow
def test_dropout_of_adapters_is_in_the_step():
    with_dropout, without = (
        compiled("llama3_8b_massive.py:smoke,lora", "h100:1", "fsdp=1", f"lora.dropout={rate}")
        for rate in (0.5, 0.0)
    )
    drawn = [each["train_step"].text.count("rng") for each in (with_dropout, without)]
    drawn = [
        each["train_step"].text.count("threefry") + count
        for each, count in zip((with_dropout, without), drawn, strict=True)
    ]
    assert drawn[0] > drawn[1]


@needs_plugin
@pytest.mark.slow
def test_what_a_gpu_has_no_room_for_does_not_fit():
    found = plans.plan(
        loading.load(str(ROOT / "configs/llama3_8b_20ng.py"), ["train.max_length=256"]),
        hardware.topology("a100:1"),
        ONE,
        None,
        decoding=False,
    )
    assert not found.fits
    assert found.data["train_step"]["peak_gib"] > found.data["usable_gib"]
