"""What is kept between runs in the user's cache folder: converted models and compiled programs."""

import os
from pathlib import Path


def root() -> Path:
    """`$JAXCLF_CACHE`, or `~/.cache/jaxclf`."""
    return Path(os.environ.get("JAXCLF_CACHE") or Path.home() / ".cache" / "jaxclf")


def keep_programs() -> None:
    """Let JAX find again what an earlier run compiled, unless its own settings name a folder.

    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    import jax

    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(root() / "programs"))
