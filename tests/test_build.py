"""What was built: every instruction-set level, no instruction above its level, errors that do not hide."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv as fc
from fastconv import kernels
from fastconv.kernels import isa
from support import LEVELS, python

FOLDER = Path(kernels.__file__).parent
X86 = platform.machine().lower() in ("x86_64", "amd64")
needs_objdump = pytest.mark.skipif(
    not X86 or shutil.which("objdump") is None, reason="needs an x86-64 machine with objdump"
)
# VEX-encoded instructions on general registers, from the same CPU generation as AVX2.
BMI = "andn|bextr|blsi|blsr|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|movbe"


def extension(stem):
    (found,) = [path for path in FOLDER.glob(f"{stem}.*") if path.suffix in (".so", ".pyd")]
    return found


def instructions(stem, pattern):
    """The disassembled instructions of an extension that match a pattern."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(extension(stem))]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [line.split("\t", 1)[1] for line in text.splitlines() if "\t" in line]
    assert len(code) > 1000
    return [line for line in code if re.search(pattern, line)]


@needs_objdump
@pytest.mark.parametrize("stem", ["_baseline", "_system"])
def test_baseline_runs_on_a_cpu_without_avx(stem):
    assert not instructions(stem, rf"%[yz]mm|^v\w+\s.*%xmm|^({BMI})\s")


@needs_objdump
def test_v3_runs_on_a_cpu_without_avx512():
    assert not instructions("_v3", r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])")
    assert instructions("_v3", r"^vfmadd.*%ymm")


@needs_objdump
def test_v4_uses_the_whole_width():
    assert instructions("_v4", r"^vfmadd.*%zmm")


@pytest.mark.parametrize("level", [level.name for level in isa.levels()])
def test_every_level_is_built(level):
    assert extension(f"_{level}").stat().st_size > 10_000


@pytest.mark.parametrize("level", LEVELS)
def test_every_supported_level_loads(level):
    module = kernels.load(level)
    assert module.__name__ == f"fastconv.kernels._{level}"
    with kernels.use(level):
        assert kernels.active() is module
    assert python(
        "import fastconv.kernels as k; print(k.active().__name__)", FASTCONV_ISA=level
    ).stdout.split() == [module.__name__]


def test_levels_offer_the_same_functions():
    names = [{name for name in dir(kernels.load(level)) if not name.startswith("__")} for level in LEVELS]
    assert all(other == names[0] for other in names)
    assert names[0]


def test_default_is_the_best_level():
    code = "import fastconv.kernels as k; print(k.active().__name__)"
    assert python(code, FASTCONV_ISA=None).stdout.split() == [f"fastconv.kernels._{LEVELS[-1]}"]


def test_flags_are_the_features():
    """A level asks of the CPU exactly what its flags let the compiler use."""
    for level in isa.levels("x86_64"):
        flags = {flag[2:] for flag in level.flags if not flag.startswith("-mprefer")}
        assert flags == level.features
    names = [level.features for level in isa.levels("x86_64")]
    assert names[0] < names[1] < names[2]
    assert not any(feature.startswith("avx") for feature in names[0])


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "riscv64", "ppc64le", ""])
def test_other_machines_build_the_baseline_alone(machine):
    ((name, flags, features),) = isa.levels(machine)
    assert (name, flags, features) == ("baseline", (), frozenset())


def test_unknown_level():
    with pytest.raises(RuntimeError, match="'avx3'.*baseline"):
        kernels.load("avx3")
    done = python("import fastconv", FASTCONV_ISA="avx3", check=False)
    assert "the environment variable FASTCONV_ISA=avx3" in done.stderr
    assert done.returncode == 1
    assert "RuntimeError: unknown instruction-set level 'avx3'" in done.stderr


def on_cpu(features, code, **environment):
    """Run code where the CPU probe reports only some features."""
    stub = f"""
import sys, types
probe = types.ModuleType("fastconv.kernels._system")
probe.cpu_features = lambda: frozenset({sorted(features)!r})
probe.compiler = lambda: "none"
probe.openmp_version = lambda: 0
probe.openmp_cpus = probe.in_threads = probe.past_cache_line = None
sys.modules[probe.__name__] = probe
"""
    return python(stub + code, check=False, **environment)


@pytest.mark.skipif(not X86, reason="other machines have one level")
def test_an_older_cpu_gets_a_lower_level():
    code = "import fastconv.kernels as k; print(k.active().__name__, *k.supported_levels())"
    v3 = next(level for level in isa.levels() if level.name == "v3").features
    done = on_cpu(v3 - {"fma"}, code, FASTCONV_ISA=None)
    assert done.stdout.split() == ["fastconv.kernels._baseline", "baseline"]


@pytest.mark.skipif(not X86, reason="other machines have one level")
def test_a_level_the_cpu_lacks_is_refused():
    v3 = next(level for level in isa.levels() if level.name == "v3").features
    done = on_cpu(v3 - {"fma"}, "import fastconv", FASTCONV_ISA="v3")
    assert done.returncode == 1
    assert "needs fma, which this CPU" in done.stderr


def test_use_puts_the_level_back_after_an_error():
    before = kernels.active()
    with pytest.raises(KeyError), kernels.use("baseline"):
        raise KeyError
    assert kernels.active() is before


@pytest.fixture(scope="module")
def copied_package(tmp_path_factory):
    """A copy of the installed package whose files a test may break."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(FOLDER.parent, folder / "fastconv", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(
    "content", [None, b"", b"not an extension" * 100], ids=["missing", "empty", "broken"]
)
@pytest.mark.parametrize("level", sorted({"baseline", LEVELS[-1]}))
def test_an_extension_that_fails_to_import_is_an_error(copied_package, level, content):
    """Falling back would hide for years that everything runs at half speed."""
    broken = copied_package / "fastconv" / "kernels" / extension(f"_{level}").name
    kept = broken.read_bytes()
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    try:
        chosen = level if level != LEVELS[-1] else None
        done = python("import fastconv", FASTCONV_ISA=chosen, PYTHONPATH=str(copied_package), check=False)
    finally:
        broken.write_bytes(kept)
    assert done.returncode == 1
    assert re.search(r"^(ImportError|ModuleNotFoundError)\b", done.stderr, re.M)
    assert python("import fastconv", PYTHONPATH=str(copied_package)).returncode == 0


def test_info():
    info = fc.info()
    text = str(info)
    for fact in (kernels.active().__name__.rpartition("_")[2], kernels.compiler):
        assert fact in text
    for level in LEVELS:
        assert level in text
    for feature in kernels.cpu_features:
        assert feature in text
    assert fc.get_num_threads() in info.values()
    with kernels.use("baseline"):
        assert "baseline" in {str(value) for value in fc.info().values()}


def compile_elsewhere(folder, **environment):
    """Build a copy of the source with the baseline level alone, unoptimised and with bounds checks."""
    repository = Path(__file__).resolve().parent.parent
    if not (repository / "setup.py").exists():
        pytest.skip("the source is not next to the tests")
    pytest.importorskip("Cython", reason="building needs Cython")
    pytest.importorskip("setuptools", reason="building needs setuptools")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.egg-info")
    shutil.copytree(repository / "src", folder / "src", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder)
    with open(folder / "src/fastconv/kernels/isa.py", "a") as table:
        table.write("\n\ndef levels(machine=None):\n    return _OTHER_LEVELS\n")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    variables = {**os.environ, "FASTCONV_DEBUG_BUILD": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_builds_and_runs_without_openmp(tmp_path):
    """One build for three promises: no OpenMP, a machine with one level, bounds checks on every kernel."""
    log = compile_elsewhere(tmp_path, FASTCONV_NO_OPENMP="1")
    assert "no OpenMP" in log
    assert "-fopenmp" not in log
    code = """
import numpy as np
import fastconv as fc
from fastconv import kernels
assert kernels.openmp_version == 0
assert kernels.supported_levels() == ("baseline",)
fc.set_num_threads(2)
assert fc.get_num_threads() == 1
rng = np.random.default_rng(1)
for dtype in (np.float32, np.float64):
    for groups in (1, 2, 6):
        x = rng.standard_normal((2, 6, 11, 13)).astype(dtype)
        weight = rng.standard_normal((18, 6 // groups, 3, 3)).astype(dtype)
        results = [
            fc.conv2d(x, weight, padding=((1, 2), (0, 1)), groups=groups, algorithm=name, num_threads=4)
            for name in fc.algorithms.ALGORITHMS
        ]
        for y in results:
            np.testing.assert_allclose(y, results[0], rtol=1e-3, atol=1e-4)
        grad = np.ones_like(results[0])
        fc.functional.conv2d_input_grad(grad, weight, x.shape, padding=((1, 2), (0, 1)), groups=groups)
        fc.functional.conv2d_weight_grad(grad, x, weight.shape, padding=((1, 2), (0, 1)), groups=groups)
print("info:", fc.info())
"""
    done = python(code, PYTHONPATH=str(tmp_path / "src"), FASTCONV_ISA=None)
    assert re.search(r"openmp\W+(no|none|false|0)\b", done.stdout, re.I), done.stdout
