"""Fine-tune language models into text classifiers on JAX.

The names below are imported when they are first used, so that `import jaxclf` costs nothing.

    load              a trained classifier, to label texts
    TextClassifier    a scikit-learn estimator
    train             a run from its config, as python -m jaxclf.train
    evaluate          a run scored again, as python -m jaxclf.evaluate
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxclf.api import LoadedClassifier, load
    from jaxclf.estimator import TextClassifier
    from jaxclf.evaluate import run as evaluate
    from jaxclf.report.result import Report
    from jaxclf.train import run as train

__version__ = "0.1.0"
__all__ = [
    "LoadedClassifier",
    "Report",
    "TextClassifier",
    "evaluate",
    "load",
    "train",
]

_MODULES = {
    "LoadedClassifier": "jaxclf.api",
    "Report": "jaxclf.report.result",
    "TextClassifier": "jaxclf.estimator",
    "load": "jaxclf.api",
}
_CALLABLE_MODULES = ("evaluate", "train")  # see jaxclf.core.modules


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_MODULES:
        return importlib.import_module(f"jaxclf.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'jaxclf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
