"""Builds the compiled extensions; everything else about the package is in pyproject.toml."""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("src/fastconv/kernels")
ISA_LEVELS = runpy.run_path(str(KERNELS / "isa.py"))["levels"]()
DEBUG = os.environ.get("FASTCONV_DEBUG_BUILD", "") not in ("", "0")


class BuildKernels(build_ext):
    """build_ext that compiles the extensions side by side and with OpenMP where the compiler has it."""

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self):
        if self.compiler_has_openmp():
            for extension in self.extensions:
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args.append("-fopenmp")
                if sys.platform == "linux":
                    extension.extra_link_args.append("-Wl,--wrap=GOMP_parallel")  # see team.h
        else:
            print("fastconv: the compiler has no OpenMP; building single-threaded kernels", file=sys.stderr)
        super().build_extensions()

    def compiler_has_openmp(self):
        if os.environ.get("FASTCONV_NO_OPENMP", "") not in ("", "0"):
            return False
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            command = [*self.compiler.compiler_so, "-fopenmp", str(source), "-o", str(Path(folder, "probe"))]
            command = [word for word in command if word != "-c"]
            try:
                return subprocess.run(command, capture_output=True).returncode == 0
            except OSError:
                return False


def extension(stem, flags=()):
    optimise = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    return Extension(
        f"fastconv.kernels.{stem}",
        [str(KERNELS / f"{stem}.pyx")],
        depends=[str(path) for pattern in ("*.pyx", "*.h") for path in sorted(KERNELS.glob(pattern))],
        include_dirs=[str(KERNELS)],
        # Floating-point semantics stay IEEE apart from fused multiply-add, which GCC forms by default.
        extra_compile_args=[*optimise, "-std=gnu11", "-fno-math-errno", *flags],
        extra_link_args=[] if DEBUG else ["-s"],
    )


setup(
    ext_modules=cythonize(
        [
            extension("_system"),
            extension("_calls"),
            *(extension(f"_{level.name}", level.flags) for level in ISA_LEVELS),
        ],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": not DEBUG,
            "freethreading_compatible": True,
        },
    ),
    cmdclass={"build_ext": BuildKernels},
)
