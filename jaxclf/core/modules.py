"""Modules that are called like a function, for names that are a command and a function at once."""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that calls its `run`.

    Importing `jaxclf.train` binds the module to that name of the package, whatever stood there. So
    that `jaxclf.train(config, workdir)` works beside `python -m jaxclf.train`, it is the module
    that has to be callable.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `run`."""
        return self.__dict__["run"](*arguments, **options)


def make_callable(name: str, run: Callable[..., Any]) -> None:
    """Let the module of this name be called as its function `run`, with that one's signature."""
    module = sys.modules[name]
    module.__class__ = CallableModule
    module.__dict__["__signature__"] = inspect.signature(run)
