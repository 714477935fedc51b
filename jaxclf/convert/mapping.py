"""The conversion engine: a table of one row per tensor, used in both directions.

    Row("model.layers.{layer}.mlp.up_proj.weight", "layers/mlp/up/kernel", transpose=True)

says that layer i of our stacked leaf `layers/mlp/up/kernel` is the transpose of
`model.layers.i.mlp.up_proj.weight`. A `Family` has such a table (see `decoders`).
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxclf.core.errors import ArtifactError

Shape = tuple[int, ...]
_SHOWN = 50  # of defects in one message


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """`{layer}` in the Hugging Face name runs over the leading axis of our leaf, `{expert}` over
    the next.

    Rows of one name are parts of one tensor, one below the other, or side by side along `axis`.
    `interleaved`: of how many such parts each takes its turn there, one element at a time. `first`:
    the first layer that has one; those before it are ones, and are used for nothing. `numbers`: of
    the leaf's layers in names, where they are not 0, 1, 2 …
    """

    theirs: str
    ours: str
    transpose: bool = False
    first: int = 0
    axis: int = 0
    interleaved: int = 1
    numbers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """How models of one `model_type` are read and written.

    `rows(config)`: the table for a model of these dimensions. `parameters(config)`: the same by the
    names of transformers' parameters, where files have others. `read_config(theirs, source,
    tensors)`: our dimensions from the content of a config.json beside tensors of these names.
    `write_config(config, labels)`: the content of a config.json; `labels` name the head's scores.

    `renamed`: pattern and replacement for names that only some files use. `prefix` stands before
    every name but in files of a model without a head. Patterns of names that carry no parameter
    (`ignored`) or what we have no place for (`unused`; `beside_head`: in a model with one). `tied`:
    copies that some files hold, name → the tensor they must equal.
    """

    rows: Callable[[Any], Sequence[TensorRow]]
    read_config: Callable[[Mapping[str, Any], object, Collection[str]], Any]
    write_config: Callable[[Any, Sequence[str]], dict[str, Any]]
    parameters: Callable[[Any], Sequence[TensorRow]] | None = None
    prefix: str = ""
    renamed: Sequence[tuple[str, str]] = ()
    ignored: Sequence[str] = ()
    unused: Sequence[str] = ()
    beside_head: Sequence[str] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One Hugging Face tensor, or what `slices` have of it, and its place in our tree."""

    name: str
    shape: Shape
    ours: str
    layer: int | None
    transpose: bool
    slices: tuple[slice, ...] = ()
    expert: int | None = None

    @property
    def place(self) -> tuple[int, ...]:
        """Where it lies along the leading axes of our leaf."""
        return tuple(index for index in (self.layer, self.expert) if index is not None)


def expand(rows: Sequence[TensorRow], leaves: Mapping[str, Shape]) -> list[Tensor]:
    """The tensors that make up a tree of these leaves, leaf by leaf, layers in order.

    A row whose leaf the tree lacks (an unembedding tied to the embedding) yields none. Raises
    ValueError for a leaf without a row: the table is incomplete.
    """
    tensors = []
    starts: dict[str, int] = {}  # where a tensor's next part begins
    for row in rows:
        if row.ours not in leaves:
            continue
        shape = leaves[row.ours]
        layered = "{layer}" in row.theirs
        expertly = "{expert}" in row.theirs
        part = shape[layered + expertly :]
        part = part[::-1] if row.transpose else part
        for layer in range(row.first, shape[0]) if layered else [None]:
            for expert in range(shape[1]) if expertly else [None]:
                number = row.numbers[layer] if row.numbers and layer is not None else layer
                name = row.theirs.format(layer=number, expert=expert)
                start, turns, size = starts.get(name, 0), row.interleaved, part[row.axis]
                cut = slice(start, start + size * turns, turns)
                slices = (*[slice(None)] * row.axis, cut)
                tensors.append(Tensor(name, part, row.ours, layer, row.transpose, slices, expert))
                starts[name] = start + (size if turns == 1 else 1)
    if forgotten := set(leaves) - {row.ours for row in rows}:
        raise ValueError(f"the table has no row for {sorted(forgotten)}")
    return tensors


def check_depths(
    rows: Sequence[TensorRow], leaves: Mapping[str, Shape], found: Collection[str], source: object
) -> None:
    """Raise ArtifactError where a leaf has more layers than the file has tensors.

    Before `expand`, which would name each of the million layers that a damaged file may ask for.
    """
    for row in rows:
        depth = leaves[row.ours][0] if "{layer}" in row.theirs and row.ours in leaves else 0
        if depth > len(found):
            raise ArtifactError(
                f"{source}: says {depth:,} layers; the file has {len(found):,} tensors in all"
            )


def check(
    tensors: Iterable[Tensor],
    found: Mapping[str, Shape],
    ignored: Sequence[str],
    source: object,
    settings: str = "config.json",
) -> None:
    """Raise one ArtifactError that lists all missing, unused and wrong-shaped tensors.

    `ignored`: regular expressions of names that are known to be no parameter of ours. `settings`:
    the file that the shapes follow from.
    """
    wanted = whole_shapes(tensors)
    defects = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    for name, shape in found.items():
        if name not in wanted and not matches(name, ignored):
            defects.append(f"unused: {name} {shape}")
        elif name in wanted and wanted[name] != shape:
            defects.append(f"wrong shape: {name} {shape}, expected {wanted[name]} by {settings}")
    if len(defects) > _SHOWN:
        defects[_SHOWN:] = [f"and {len(defects) - _SHOWN:,} more"]
    if defects:
        raise ArtifactError("\n  ".join([f"{source}: the tensors do not fit the model:", *defects]))


def whole_shapes(tensors: Iterable[Tensor]) -> dict[str, Shape]:
    """The shape of each Hugging Face tensor, of all its parts together."""
    found: dict[str, Shape] = {}
    for tensor in tensors:
        known = found.get(tensor.name, tensor.shape)
        cuts = [*tensor.slices, *[slice(None)] * (len(known) - len(tensor.slices))]
        sizes = zip(tensor.shape, cuts, strict=True)
        own = (_whole_size(size, cut) for size, cut in sizes)
        found[tensor.name] = tuple(map(max, own, known))
    return found


def _whole_size(size: int, cut: slice) -> int:
    """Of an axis of which `cut` takes `size` places; where it steps, others take the rest."""
    if cut == slice(None):
        return size
    return cut.stop if cut.step in (None, 1) else size * cut.step


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
