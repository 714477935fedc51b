"""Every path of the library through XLA's compiler for GPUs, without a GPU, as a Markdown table.

    python benchmarks/gpu_matrix.py                                # all of it: hours on two cores
    python benchmarks/gpu_matrix.py --turns                        # half: both GPUs, mesh by mesh
    python benchmarks/gpu_matrix.py --short                        # one mesh and GPU a path
    python benchmarks/gpu_matrix.py --rows "Llama.*greedy" --gpus h100 --meshes fsdp=8
    python benchmarks/gpu_matrix.py --list
    python benchmarks/gpu_matrix.py --done cells.jsonl --part 1/2  # 2/2 beside it; goes on if cut

Tiny models in bfloat16 with attention="cudnn", rows of 2,048 tokens. Exit code 1 if a path does not
compile, or if an array has a value for every pair of a row's tokens. Needs an environment with
`pip install -e '.[plan-gpu]'`.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path as File

import compiled_text
from compiled_text import PLAIN, Collectives, Shape

GPUS = ("h100", "a100")


@dataclasses.dataclass
class Cell:
    """What became of one path on one mesh: all of its programs together.

    peak: the most bytes that one of its programs has in use on a GPU. squares: shapes of arrays
    that have a value for every pair of tokens; fused: those that exist within a fusion alone.
    without_triton: of matrix products, see `gpus.compiled`.
    """

    path: str
    mesh: str
    gpu: str
    error: str = ""
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    peak: int = 0
    collectives: Collectives = dataclasses.field(default_factory=Collectives)
    squares: set[Shape] = dataclasses.field(default_factory=set)
    fused: set[Shape] = dataclasses.field(default_factory=set)
    without_triton: bool = False
    seconds: float = 0.0

    def add(self, text: str, peak: int, least: int, elements: int) -> None:
        """Note what the text of one more program says; the sizes are those of `squares`."""
        for name, count in compiled_text.kernels(text).items():
            self.kernels[name] = self.kernels.get(name, 0) + count
        self.peak = max(self.peak, peak)
        self.collectives += compiled_text.collectives(text)
        squares, fused = compiled_text.squares(text, least, elements)
        self.squares |= squares
        self.fused |= fused

    def summary(self) -> str:
        """As it stands in the table."""
        if self.error:
            return "**failed**"
        names = ", ".join(f"{name} {count}" for name, count in sorted(self.kernels.items()))
        parts = [names or PLAIN, f"{self.peak / 2**20:.0f} MiB"]
        if self.collectives.count:
            parts.append(f"{self.collectives.count} ({self.collectives.asynchronous})")
        if self.without_triton:
            parts.append("cuBLAS")
        if self.squares or self.fused:
            shapes = [*map(_product, sorted(self.squares)), *map(_within, sorted(self.fused))]
            more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
            parts.append(f"**square {shapes[0]}{more}**")
        return "; ".join(parts)


def _product(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _within(shape: Shape) -> str:
    return f"{_product(shape)} (in a fusion)"


# Compiling ----------------------------------------------------------------------------------------


def compile_cell(path, mesh: str, gpu: str, keep: File | None = None) -> Cell:
    """Compile all programs of a path; what the compiler refuses is a result too.

    `keep`: a folder for the compiled texts.
    """
    import jax
    from gpu_paths import MESHES

    from jaxclf.distributed import sharding
    from jaxclf.planning import gpus

    cell, start = Cell(path.name, mesh, gpu), time.monotonic()
    sizes = dict.fromkeys(sharding.AXES, 1) | MESHES[mesh]
    devices = math.prod(sizes.values())
    try:
        with jax.set_mesh(sharding.make_mesh(sizes, gpus.devices(gpu, devices))):
            programs = path.programs()
            result, number = None, 0
            while True:
                try:
                    function, arguments = programs.send(result)
                except StopIteration:
                    break
                lowered = function.lower(*arguments)
                compiled, again = gpus.compiled(lowered)
                cell.without_triton |= again
                text = compiled.as_text()
                if keep is not None:
                    name = re.sub(r"[^\w=]+", "-", f"{path.name} {mesh} {gpu} {number}")
                    (keep / f"{name}.txt").write_text(text, "utf-8")
                number += 1
                peak = compiled.memory_analysis().peak_memory_in_bytes
                cell.add(text, peak, path.least, path.pairs // devices // 2)
                result = jax.tree.map(
                    lambda leaf, cut: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut),
                    lowered.out_info,
                    compiled.output_shardings,
                )
    except Exception as error:
        cell.error = essence(f"{type(error).__name__}: {error}")
    cell.seconds = time.monotonic() - start
    return cell


def essence(message: str) -> str:
    """The lines of an error that say what is wrong: its first, and what Python raised within."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = lines[:1]
    found += [line for line in lines[1:] if re.match(r"\w*(Error|Exception)\b", line)]
    return " … ".join(line[:300] for line in dict.fromkeys(found))


# The table ----------------------------------------------------------------------------------------


def is_right(cell: Cell) -> bool:
    return not (cell.error or cell.squares or cell.fused)


def report(cells: Sequence[Cell], compile_seconds: float, meshes: Sequence[str] = ()) -> str:
    """The summary line, a table for each GPU, and the errors and squares by kind."""
    lines = [f"{summary(cells)}; compiled in {compile_seconds:,.0f} s.", ""]
    if len({(cell.path, cell.mesh) for cell in cells}) == len(cells):
        lines += [*table(cells, meshes, with_gpu=True), ""]
    else:
        for gpu in dict.fromkeys(cell.gpu for cell in cells):
            lines += [
                f"### {gpu}",
                "",
                *table([cell for cell in cells if cell.gpu == gpu], meshes),
                "",
            ]
    failed: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.error:
            failed.setdefault(cell.error, []).append(cell)
    if failed:
        lines += ["### Failed", ""]
        for error, of_error in failed.items():
            where = "; ".join(dict.fromkeys(f"{each.path} on {each.mesh}" for each in of_error))
            count = f"{len(of_error):,} cell{'s' if len(of_error) > 1 else ''}"
            lines.append(f"- {count}: {error}. {where}")
        lines.append("")
    return "\n".join(lines)


def summary(cells: Sequence[Cell]) -> str:
    failed = sum(bool(cell.error) for cell in cells)
    squares = sum(bool(cell.squares or cell.fused) for cell in cells)
    return f"{len(cells):,} cells, {failed:,} failed, {squares:,} with a square"


def table(
    cells: Sequence[Cell], order: Sequence[str] = (), with_gpu: bool = False
) -> Iterator[str]:
    """A row a path, a column a mesh, in their `order` if given; empty: not compiled."""
    met = dict.fromkeys(cell.mesh for cell in cells)
    meshes = [mesh for mesh in order or met if mesh in met]
    yield f"| model | tuning | rows | program | {' | '.join(meshes)} |"
    yield "|---" * (4 + len(meshes)) + "|"
    of_path: dict[str, dict[str, str]] = {}
    for cell in cells:
        gpu = f"{cell.gpu}: " if with_gpu else ""
        of_path.setdefault(cell.path, {})[cell.mesh] = gpu + cell.summary()
    for path, found in of_path.items():
        yield f"| {path} | {' | '.join(found.get(mesh, '') for mesh in meshes)} |"


# The command --------------------------------------------------------------------------------------


def chosen(options: argparse.Namespace) -> list[tuple]:
    """(path, mesh, GPU) of every cell that the options name."""
    from gpu_paths import MESHES, all_paths

    paths = [path for path in all_paths() if re.search(options.rows, path.name)]
    meshes = options.meshes or list(MESHES)
    if unknown := set(meshes) - set(MESHES):
        raise SystemExit(f"--meshes {', '.join(unknown)}: expected some of {list(MESHES)}")
    found = []
    if options.short:
        # Meshes and GPUs in turns, so that each is met with every kind of program.
        short = [path for path in paths if path.short]
        for number, path in enumerate(short):
            mesh = meshes[number % len(meshes)]
            gpu = "a100" if number % 4 == 3 and "a100" in options.gpus else options.gpus[0]
            found.append((path, mesh, gpu))
        return found
    if options.turns:
        # Every path meets every mesh and every GPU, and so does every mesh; each path first on one.
        places = [
            (row, (row + turn) % len(meshes))
            for turn in range(len(meshes))
            for row in range(len(paths))
        ]
        kinds = options.gpus
        return [(paths[i], meshes[j], kinds[(i + j) % len(kinds)]) for i, j in places]
    return [(path, mesh, gpu) for path in paths for mesh in meshes for gpu in options.gpus]


def _kinds(text: str) -> list[str]:
    return text.split(",")


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def _kept(path: File | None) -> dict[tuple[str, str, str], Cell]:
    """The cells that were compiled before, by path, mesh and GPU."""
    found = {}
    for line in path.read_text("utf-8").splitlines() if path and path.is_file() else ():
        cell = Cell(**json.loads(line))
        cell.collectives = Collectives(**cell.collectives)
        cell.squares, cell.fused = ({*map(tuple, shapes)} for shapes in (cell.squares, cell.fused))
        found[cell.path, cell.mesh, cell.gpu] = cell
    return found


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--gpus", type=_kinds, default=list(GPUS), help="kinds, comma-separated")
    found.add_argument("--meshes", action="append", help="one of the meshes; may be repeated")
    found.add_argument("--rows", default="", metavar="PATTERN", help="of the paths' names")
    found.add_argument("--turns", action="store_true", help="one GPU a cell, each in its turn")
    found.add_argument("--short", action="store_true", help="one mesh and one GPU a path")
    found.add_argument("--list", action="store_true", help="only print the cells")
    found.add_argument("--output", type=File, metavar="FILE.md", help="the tables")
    found.add_argument("--json", type=File, metavar="FILE", help="the same as one JSON list")
    found.add_argument("--done", type=File, metavar="FILE.jsonl", help="cells, kept as they come")
    found.add_argument("--kept", action="store_true", help="the cells of --done alone, as a table")
    found.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help="every Nth cell")
    found.add_argument("--keep", type=File, metavar="FOLDER", help="for the compiled texts")
    return found


def main() -> None:
    options = parser().parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        _keep_kernels(File(folder))
        run(options)


def _keep_kernels(folder: File) -> None:
    """Let XLA compile a kernel once where many programs have it, which halves the time."""
    flags = os.environ.get("XLA_FLAGS", "")
    # A later jaxlib would end over a flag that it does not know.
    if metadata.version("jaxlib").startswith("0.10.") and "kernel_cache_file" not in flags:
        flags += " --xla_gpu_enable_llvm_module_compilation_parallelism=true"
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_kernel_cache_file={folder / 'kernels'}"


def run(options: argparse.Namespace) -> None:
    """Compile the chosen cells and write the table; SystemExit(1) where one is not as it must."""
    cells = chosen(options)
    if options.list:
        for path, mesh, gpu in cells:
            print(f"{path.name} | {mesh} | {gpu}")
        return
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    kept, found = _kept(options.done), []
    part, parts = options.part
    cells = cells[part - 1 :: parts]
    for number, (path, mesh, gpu) in enumerate(cells, 1):
        if cell := kept.get((path.name, mesh, gpu)):
            found.append(cell)
            continue
        if options.kept:
            continue
        cell = compile_cell(path, mesh, gpu, options.keep)
        found.append(cell)
        if options.done:
            with options.done.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(cell), default=sorted) + "\n")
        line = cell.error or cell.summary()
        print(
            f"{number}/{len(cells)} {cell.seconds:.1f} s | {path.name} | {mesh} | {gpu} | {line}",
            file=sys.stderr,
            flush=True,
        )
    from gpu_paths import MESHES, all_paths

    rows, columns = [path.name for path in all_paths()], list(MESHES)
    found.sort(key=lambda cell: (rows.index(cell.path), columns.index(cell.mesh)))
    text = report(found, sum(cell.seconds for cell in found), columns)
    if options.output:
        options.output.write_text(text, "utf-8")
    if options.json:
        fields = [dataclasses.asdict(cell) for cell in found]
        options.json.write_text(json.dumps(fields, indent=1, default=sorted), "utf-8")
    print(text if not options.output else text.partition("\n")[0])
    if not all(map(is_right, found)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
