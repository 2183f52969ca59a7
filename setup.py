"""Builds the optional extensions of the dense CRF and of the counts; everything else is in pyproject.toml.

The kernels of the CRF are compiled once per instruction set and chosen when the program runs: one wheel serves AVX2 and
AVX-512. Without a compiler the package installs all the same: `pipeline.refine.native.available()` says so, and
`pipeline.score.label_maps` takes numpy instead.
"""

import os
import platform
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

DENSECRF = Path("pipeline/refine/densecrf_native")
LABEL_MAPS = Path("pipeline/score/label_maps_native")
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
    """build_ext that compiles the CRF's kernels.cpp once per instruction set and links all copies into its module."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        """Add the copies of the kernels, then build as usual."""
        for name, flags in INSTRUCTION_SETS.items() if ext is densecrf else ():
            ext.extra_objects += self.compiler.compile(
                [str(DENSECRF / "kernels.cpp")],
                output_dir=str(Path(self.build_temp) / name),
                macros=[("CRF_ISA", name)],
                extra_postargs=["-std=c++17", *FLAGS, *flags],
            )
        super().build_extension(ext)


def extension(name: str, sources: list[Path], folder: Path, **more: Any) -> Pybind11Extension:
    """One optional module, built again when anything in its folder changes."""
    return Pybind11Extension(
        name,
        [str(path) for path in sources],
        cxx_std=17,
        extra_compile_args=FLAGS,
        extra_link_args=SANITIZERS,
        depends=[str(path) for path in sorted(folder.glob("*.*pp"))],
        optional=True,
        **more,
    )


densecrf = extension(
    "pipeline.refine._densecrf",
    [DENSECRF / name for name in ("bindings.cpp", "dispatch.cpp", "workspace.cpp")],
    DENSECRF,
    define_macros=[("CRF_X86", "1")] if X86 else [],
)
label_maps = extension("pipeline.score._label_maps", [LABEL_MAPS / "bindings.cpp"], LABEL_MAPS)
setup(ext_modules=[densecrf, label_maps], cmdclass={"build_ext": BuildKernels})
