"""Who imports whom among the packages of jaxclf: `python benchmarks/imports.py`.

Prints, for each package in the order of the layers, the packages that it imports; then what goes
upward or in a circle (nothing should), and the modules that import the most others.
`tests/test_architecture.py` holds the same rules.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = "jaxclf"  # the layer of what a user can do: the modules beside the packages

# From the ground up. A package imports from its own layer's packages never, from lower ones freely.
LAYERS = (
    {"core"},
    {"config", "distributed"},
    {"data", "models"},
    {"prompts", "adapters"},
    {"checkpoint"},
    {"training", "decoding"},
    {"metrics", "remote"},
    {"classifiers", "report"},
    {"convert", "runs"},
    {"ensemble"},
    {"planning"},
    {"tables"},
    {ROOT},
)


def layer(package: str) -> int:
    """Its number from the ground; raises LookupError for a package that has no layer yet."""
    for number, packages in enumerate(LAYERS):
        if package in packages:
            return number
    raise LookupError(f"jaxclf/{package} has no layer yet: add it to LAYERS in {__file__}")


def package_of(module: str) -> str:
    """`jaxclf.data.loader` → data; `jaxclf` and its commands, `jaxclf.train` → the root."""
    parts = module.split(".")
    if len(parts) == 2 and parts[1] not in set().union(*LAYERS):
        return ROOT
    return parts[1] if len(parts) > 1 else ROOT


def imports(root: Path, path: Path) -> Iterator[str]:
    """Full names of the modules a file imports anywhere: at its top, in a function, for types."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            for alias in node.names:
                # `from jaxclf.data import loader` imports a module, `from … import Record` a name.
                inner = f"{module}.{alias.name}"
                stem = root / inner.replace(".", "/")
                is_module = stem.with_suffix(".py").is_file() or stem.is_dir()
                yield inner if is_module else module


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path = REPOSITORY) -> dict[str, set[str]]:
    """Each module of jaxclf with the modules of jaxclf that it imports."""
    return {
        module_name(root, path): {
            name for name in imports(root, path) if name.partition(".")[0] == "jaxclf"
        }
        for path in sorted((root / "jaxclf").rglob("*.py"))
    }


def arrows(found: Mapping[str, set[str]]) -> dict[str, dict[str, list[str]]]:
    """From package to package, with `importer → imported` for each import."""
    between: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module, names in found.items():
        for name in sorted(names):
            here, there = package_of(module), package_of(name)
            if here != there:
                between[here][there].append(f"{module} → {name}")
    return between


def upward(found: Mapping[str, set[str]]) -> list[str]:
    """The imports that do not go down by a layer at least."""
    return [
        line
        for here, targets in arrows(found).items()
        for there, lines in targets.items()
        if layer(there) >= layer(here)
        for line in lines
    ]


def circles(found: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other, directly or through others: `a → b → a`."""
    done: set[str] = set()
    circular: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circular.append(" → ".join((*path[path.index(module) :], module)))
        elif module not in done:
            for name in sorted(found.get(module, ())):
                if name != module:
                    visit(name, (*path, module))
            done.add(module)

    for module in found:
        visit(module, ())
    return circular


def main() -> None:
    found = modules()
    between = arrows(found)
    for number, packages in enumerate(LAYERS):
        for package in sorted(packages):
            targets = between.get(package, {})
            said = ", ".join(f"{there} {len(lines)}" for there, lines in sorted(targets.items()))
            count = sum(package_of(module) == package for module in found)
            print(f"{number:2} {package:12} {count:3} modules → {said or 'nothing'}")
    print()
    print("upward:", *(upward(found) or ["none"]), sep="\n  ")
    print("circular:", *(circles(found) or ["none"]), sep="\n  ")
    most = sorted(found, key=lambda module: -len(found[module]))[:5]
    print("largest fan-out:", *(f"{name} {len(found[name])}" for name in most), sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
