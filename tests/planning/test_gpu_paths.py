"""Every path compiles for GPUs that are not here, and no attention has a value for each pair."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import compiled_text  # noqa: E402
import gpu_inputs  # noqa: E402
import gpu_matrix  # noqa: E402
import gpu_paths  # noqa: E402
from compiled_text import Collectives  # noqa: E402
from gpu_matrix import Cell  # noqa: E402

# As XLA:GPU of jax 0.10 writes it, without layouts and configurations that nothing here reads.
TEXT = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(bf16[8,1024,128])->f32[8]}

%fused_mask (param_0.1: s32[2,1024]) -> s32[2,1024] {
  %param_0.1 = s32[2,1024]{1,0} parameter(0)
  %compare.1 = pred[2,1024,1024]{2,1,0} compare(%param_0.1, %param_0.1), direction=EQ
  ROOT %reduce.1 = s32[2,1024]{1,0} reduce(%compare.1, %constant), dimensions={2}
}

%body (arg: (bf16[2,1024,128])) -> (bf16[2,1024,128]) {
  %all-gather-start.5 = (bf16[2,512,128]{2,0,1}, bf16[2,1024,128]{2,0,1}) all-gather-start(%bitcast.7), channel_id=10, dimensions={1}, backend_config={"collective_backend_config":{"is_sync":false,"backend":"DEFAULT"}}
  %all-gather-done.5 = bf16[2,1024,128]{2,0,1} all-gather-done(%all-gather-start.5)
  %all-to-all-start.5 = ((bf16[2,512,2,32]{3,1,0,2}), bf16[2,512,2,32]{3,1,0,2}) all-to-all-start(%bitcast.8), channel_id=9, backend_config={"collective_backend_config":{"is_sync":true,"backend":"DEFAULT"}}
  %reduce-scatter.3 = bf16[2,512,128]{2,0,1} reduce-scatter(%bitcast.9), channel_id=56, to_apply=%add
  %cudnn.2 = (bf16[2,1024,4,64]{3,1,2,0}, u8[64]{0}) custom-call(%q, %k, %v, %mask), custom_call_target="__cudnn$fmhaScaleBiasSoftmax", operand_layout_constraints={bf16[2,1024,4,64]{3,2,1,0}}
  %pallas_call.6 = (bf16[2,1024,4,64]{3,2,1,0}, f32[2,4,1024]{2,1,0}) custom-call(%q, %k, %v), custom_call_target="__gpu$xla.gpu.triton", api_version=API_VERSION_TYPED_FFI
  %pallas_call.7 = bf16[2,1024,4,64]{3,2,1,0} custom-call(%q, %k, %v), custom_call_target="__gpu$xla.gpu.triton", api_version=API_VERSION_TYPED_FFI
  %gemm.1 = (bf16[2048,512]{1,0}, s8[4194304]{0}) custom-call(%x, %kernel), custom_call_target="__cublas$gemm"
  ROOT %tuple.1 = (bf16[2,1024,128]{2,1,0}) tuple(%all-gather-done.5)
}

ENTRY %main.1 (p: bf16[8,1024,128]) -> f32[8] {
  %p = bf16[8,1024,128]{2,1,0} parameter(0)
  %loop_fusion.1 = s32[2,1024]{1,0} fusion(%ids), kind=kInput, calls=%fused_mask
  %all-reduce-start = f32[8,1]{1,0} all-reduce-start(%bitcast.6), to_apply=%add
  ROOT %out = f32[8]{0} bitcast(%all-reduce-done)
}
"""  # noqa: E501
MANY = 8 * 4 * 1024 * 1024 // 2
MASK = "  %mask = bf16[2,1,1024,1024]{3,2,1,0} broadcast(%loop_fusion.1), dimensions={0,2}\n"


def with_line(line: str) -> str:
    """The text with one more instruction in its entry."""
    return TEXT.replace("  %all-reduce-start", line + "  %all-reduce-start")


# -- the text


def test_custom_calls_are_grouped_by_the_attention_that_they_are():
    assert compiled_text.kernels(TEXT) == {"cuDNN": 1, "flash": 2}
    assert compiled_text.kernels('custom_call_target="__cublas$lt$matmul"') == {}


def test_a_collective_counts_once_and_is_asynchronous_unless_its_start_waits():
    found = compiled_text.collectives(TEXT)
    assert found == Collectives(4, 2)  # all-gather and all-reduce begin and end apart
    assert compiled_text.collectives("  %x = f32[8] all-gather-done(%y)") == Collectives(0, 0)
    assert found + Collectives(1, 1) == Collectives(5, 3)


def test_a_square_of_a_row_is_found_in_memory_and_within_fusions():
    assert compiled_text.squares(TEXT, 600, MANY) == (set(), {(2, 1024, 1024)})
    found = compiled_text.squares(with_line(MASK), 600, MANY)
    assert found == ({(2, 1, 1024, 1024)}, {(2, 1024, 1024)})


@pytest.mark.parametrize(
    "shape",
    [
        "f32[2,4,1024,512]",  # tokens of the keys divided over two devices
        "u32[2,4,1024,512]",  # random bits, two to a word
        "pred[8192,1024]",  # rows and tokens as one dimension
        "bf16[1024,2,4,1024]",  # not side by side
        "f8e4m3fn[1024,1024]",
    ],
)
def test_squares_come_in_several_forms(shape):
    line = f"  %x = {shape}{{1,0}} add(%a, %b)\n"
    memory, _ = compiled_text.squares(with_line(line), 512, MANY)
    dims = shape.partition("[")[2].rstrip("]").split(",")
    assert memory - compiled_text.squares(TEXT, 512, MANY)[0] == {tuple(map(int, dims))}


@pytest.mark.parametrize(
    "shape", ["bf16[8192,128]", "f32[2,8192]", "s32[8,1024]", "f32[4096]", "s8[33554432]"]
)
def test_rows_and_their_tokens_as_one_dimension_are_no_square(shape):
    line = f"  %x = {shape}{{1,0}} add(%a, %b)\n"
    assert compiled_text.squares(with_line(line), 600, MANY)[0] == set()


def test_a_square_in_blocks_is_found_by_its_size():
    """What a loop over blocks of queries would keep of each."""
    line = "  %x = f32[16,8,4,64,1024]{4,3,2,1,0} add(%a, %b)\n"
    assert compiled_text.squares(with_line(line), 600, MANY)[0] == {(16, 8, 4, 64, 1024)}
    block = line.replace("[16,8,4,64,1024]", "[8,4,64,1024]")
    assert compiled_text.squares(with_line(block), 600, MANY)[0] == set()


# -- the paths


@pytest.mark.parametrize("name", ["LLAMA", "T5", *gpu_inputs.ENCODERS])
def test_nothing_but_tokens_is_as_large_as_half_the_tokens_of_a_row(name):
    """Also of products that share an operand, which the compiler makes one."""
    dims = gpu_inputs.ENCODERS.get(name) or getattr(gpu_inputs, name)
    size = getattr(dims, "head_dim", dims.hidden_size // dims.num_heads)
    key_heads = getattr(dims, "num_kv_heads", dims.num_heads)
    widths = (
        size * (dims.num_heads + 2 * key_heads),
        2 * dims.intermediate_size,
        dims.vocab_size,
        3 * dims.hidden_size,
    )
    assert max(widths) < gpu_inputs.TOKENS // 2


def test_every_path_has_a_name_of_its_own():
    names = [path.name for path in gpu_paths.all_paths()]
    assert len(set(names)) == len(names)


def test_the_short_form_meets_every_mesh_both_gpus_and_all_programs():
    options = gpu_matrix.parser().parse_args(["--short"])
    cells = gpu_matrix.chosen(options)
    assert {mesh for _, mesh, _ in cells} == set(gpu_paths.MESHES)
    assert {gpu for _, _, gpu in cells} == set(gpu_matrix.GPUS)
    assert {path.task for path, _, _ in cells} == {path.task for path in gpu_paths.all_paths()}
    trained = {mesh for path, mesh, _ in cells if path.task == "train"}
    assert trained == set(gpu_paths.MESHES)


# -- the table


def cell(**fields) -> Cell:
    return Cell(**{"path": "a | b | c | d", "mesh": "1 GPU", "gpu": "h100"} | fields)


def test_a_cell_says_kernels_memory_collectives_and_squares():
    found = cell()
    assert found.summary() == "plain; 0 MiB"
    found.add(TEXT, 3 * 2**20, 600, MANY)
    assert found.summary() == (
        "cuDNN 1, flash 2; 3 MiB; 4 (2); **square 2x1024x1024 (in a fusion)**"
    )
    found.add(with_line(MASK), 2**20, 600, MANY)
    assert found.summary() == "cuDNN 2, flash 4; 3 MiB; 8 (4); **square 2x1x1024x1024 and 1 more**"
    assert cell(error="ValueError").summary() == "**failed**"


def test_the_report_counts_and_names_what_failed():
    cells = [
        cell(),
        cell(mesh="fsdp=8", error="ValueError: no"),
        cell(mesh="fsdp=8", gpu="a100", squares={(2, 1024, 1024)}),
    ]
    text = gpu_matrix.report(cells, 12.3)
    assert text.startswith("3 cells, 1 failed, 1 with a square; compiled in 12 s.")
    assert "| a | b | c | d | plain; 0 MiB | **failed** |" in text
    assert "- 1 cell: ValueError: no. a | b | c | d on fsdp=8" in text
    assert [gpu_matrix.is_right(each) for each in cells] == [True, False, False]


def test_an_error_keeps_its_first_line_and_what_python_raised():
    message = (
        "JaxRuntimeError: INTERNAL: custom_partitioner: \n\nAt:\n  a.py(3): f\n"
        "ValueError: Query, key and value should have same sharding\n"
    )
    assert gpu_matrix.essence(message) == (
        "JaxRuntimeError: INTERNAL: custom_partitioner: … "
        "ValueError: Query, key and value should have same sharding"
    )


# -- compiled


def gpu_python() -> str:
    """An interpreter whose jax compiles for NVIDIA's GPUs: this one, or one that is named."""
    if importlib.util.find_spec("jax_cuda12_plugin"):
        return sys.executable
    return os.environ.get("JAXCLF_GPU_PYTHON", "")


@pytest.mark.slow
@pytest.mark.skipif(
    not gpu_python(), reason="needs the extra plan-gpu, here or in JAXCLF_GPU_PYTHON"
)
def test_the_short_form_compiles_without_squares(tmp_path):
    """What cannot be run here is compiled here."""
    outputs = [tmp_path / f"{part}.json" for part in (1, 2)]  # side by side: minutes on two cores
    command = [gpu_python(), "benchmarks/gpu_matrix.py", "--short"]
    ours = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # of the suite, made for a CPU
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    halves = [
        subprocess.Popen(
            [*command, "--part", f"{part}/2", "--json", str(output)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / f"{part}.log").open("wb"),
        )
        for part, output in enumerate(outputs, 1)
    ]
    codes = [half.wait() for half in halves]
    said = [output.with_suffix(".log").read_text()[-4000:] for output in outputs]
    assert all(output.is_file() for output in outputs), said
    cells = [cell for output in outputs for cell in json.loads(output.read_text())]
    wrong = [each for each in cells if each["error"] or each["squares"] or each["fused"]]
    named = [{name: each[name] for name in _NAMES} for each in wrong]
    assert not wrong, json.dumps(named, indent=1)
    assert codes == [0, 0], said
    kernels = {name for each in cells for name in each["kernels"]}
    assert kernels, "no path has a kernel of attention"


_NAMES = [
    field.name
    for field in dataclasses.fields(Cell)
    if field.name in ("path", "mesh", "gpu", "error", "squares", "fused")
]
