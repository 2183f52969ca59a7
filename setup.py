"""Builds the optional extensions of the dense CRF and of the counts; everything else is in pyproject.toml.

The kernels of the CRF are compiled once per instruction set and chosen when the program runs: one wheel serves AVX2 and
AVX-512. Without a compiler the package installs all the same: `pipeline.refine.native.available()` says so, and
`pipeline.score.label_maps` takes numpy instead.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
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
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw"]
KERNELS = {name: [f"-DCRF_ISA={name}", *flags] for name, flags in INSTRUCTION_SETS.items()}
CORES = os.cpu_count() or 1


class BuildAtOnce(build_ext):
    """build_ext that compiles all sources of all modules at once, kernels.cpp once per instruction set."""

    def finalize_options(self) -> None:
        """Build the modules side by side."""
        super().finalize_options()
        self.parallel = self.parallel or CORES

    def build_extensions(self) -> None:
        """Build as usual, but for how sources become objects."""
        with ThreadPoolExecutor(CORES) as self.pool:
            self.compile_in_turn, self.compiler.compile = self.compiler.compile, self.compile_at_once
            super().build_extensions()

    def compile_at_once(
        self, sources: list[str], *, output_dir: str, extra_postargs: list[str], **options: Any
    ) -> list[str]:
        """Compile the sources of one module on the cores that all modules share; returns the paths of the objects."""
        jobs = [
            self.pool.submit(
                self.compile_in_turn,
                [source],
                output_dir=str(Path(output_dir) / name),
                extra_postargs=[*extra_postargs, *flags],
                **options,
            )
            for source in sources
            for name, flags in (KERNELS if source == str(DENSECRF / "kernels.cpp") else {"": []}).items()
        ]
        return list(chain.from_iterable(job.result() for job in jobs))


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
    [DENSECRF / name for name in ("kernels.cpp", "bindings.cpp", "dispatch.cpp", "workspace.cpp")],
    DENSECRF,
    define_macros=[("CRF_X86", "1")] if X86 else [],
)
label_maps = extension("pipeline.score._label_maps", [LABEL_MAPS / "bindings.cpp"], LABEL_MAPS)
setup(ext_modules=[densecrf, label_maps], cmdclass={"build_ext": BuildAtOnce})
