"""Builds the optional extension pipeline.refine._densecrf; everything else is in pyproject.toml.

The kernels are compiled once per instruction set and chosen when the program runs: one wheel serves AVX2 and AVX-512.
Without a compiler the package installs all the same, and `pipeline.refine.native.available()` says so.
"""

import os
import platform
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

SOURCES = Path("pipeline/refine/densecrf_native")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover", "-g1"] if "SANITIZE" in os.environ else []
FLAGS = [
    "-O1" if SANITIZERS else "-O3",
    *SANITIZERS,
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wno-psabi",
]
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = {"baseline": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw"]


class BuildKernels(build_ext):
    """build_ext that compiles kernels.cpp once per instruction set and links all copies into the one module."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        """Add the copies of the kernels, then build as usual."""
        for name, flags in INSTRUCTION_SETS.items():
            ext.extra_objects += self.compiler.compile(
                [str(SOURCES / "kernels.cpp")],
                output_dir=str(Path(self.build_temp) / name),
                macros=[("CRF_ISA", name)],
                extra_postargs=["-std=c++17", *FLAGS, *flags],
            )
        super().build_extension(ext)


extension = Pybind11Extension(
    "pipeline.refine._densecrf",
    [str(SOURCES / name) for name in ("bindings.cpp", "dispatch.cpp", "workspace.cpp")],
    cxx_std=17,
    extra_compile_args=FLAGS,
    extra_link_args=SANITIZERS,
    define_macros=[("CRF_X86", "1")] if X86 else [],
    depends=[str(path) for path in sorted(SOURCES.glob("*.*pp"))],
    optional=True,
)
setup(ext_modules=[extension], cmdclass={"build_ext": BuildKernels})
