"""What a config needs on devices that are not here."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxclf import chips, config, hlo, planning, plans
from jaxclf.planning import Job

ROOT = Path(__file__).parent.parent
SMOKE = "configs/llama3_8b_20ng.py:smoke"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu"
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jaxclf.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)


def job(name: str, topology: str, *fields: str) -> Job:
    return Job(config.load(str(ROOT / "configs" / name), fields), chips.topology(topology))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "memory"),
    [("h100:2", 80e9), pytest.param("v5e:2x2", 16 * 2**30, marks=needs_libtpu)],
)
def test_plan_of_a_mesh_that_is_searched(tmp_path, topology, memory):
    output = tmp_path / "plan.json"
    arguments = ["--config", SMOKE, "--config.train.batch_size=4", "--topology", topology]
    done = run(*arguments, "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("fits")
    found = json.loads(output.read_text())
    assert found["fits"]
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
        (["--mesh", "fsdp=8"], "needs a --topology"),
        (["--label-tokens", "0"], "expected 1 or more"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, message):
    done = run("--config", SMOKE, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_model_that_is_too_large_is_refused_by_arithmetic_alone():
    found = plans.plan(
        config.load(str(ROOT / "configs/llama3_70b_20ng.py")),
        chips.topology("v5e:2x2"),
        None,
        32,
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
        job("flan_t5_xxl_20ng.py", "h100:8", f"train.max_length={length}").need(sizes, 1)
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
    assert planning._flops(traced.jaxpr, 1) == 7 * 2 * 3 * 5 * 5


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


def test_gathered_shapes_are_those_of_all_gathers_alone():
    assert hlo.gathered(PROGRAM) == {(16, 8)}
    assert (4, 8) in hlo.shapes(PROGRAM)
