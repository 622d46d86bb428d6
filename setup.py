"""The compiled modules. Everything else about the package is in pyproject.toml."""

import os
import sys

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

# Bounds checks; built apart, so that neither build passes for the other.
CHECKED = os.environ.get("AGENTMEM_CHECKED") == "1"
BUILD = "build/checked" if CHECKED else "build"

# No fused multiply-add (-ffp-contract=off), so that bits do not depend on the compiler or the processor. Nobody reads
# errno or floating-point flags here; without them comparisons go in pairs. No flag asks for a newer processor.
if sys.platform == "win32":
    flags = ["/O2"]
else:
    flags = ["-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fno-strict-aliasing"]
    flags += ["-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]

extensions = [
    Extension(
        f"agentmem._core.{name}",
        [f"src/agentmem/_core/{name}.pyx"],
        include_dirs=[np.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=flags,
    )
    for name in (
        "array", "elementwise", "scratch", "model", "step", "belief", "population", "text", "policy", "history", "ids",
        "variables",
    )
]

setup(
    options={"build": {"build_base": BUILD}},
    ext_modules=cythonize(
        extensions,
        build_dir=f"{BUILD}/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": CHECKED,
            "wraparound": False,
            "initializedcheck": CHECKED,
            "cdivision": True,
            "embedsignature": True,
            "embedsignature.format": "python",
        },
    )
)
