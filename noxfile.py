"""Every check of the four packages, as a session. Plain `nox` runs all that must pass."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

nox.needs_version = ">=2025.2.9"
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    "lint", "types", "tests", "triton", "interop", "lowest", "wheels", "docs", "quickstart",
]  # fmt: skip

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
# Each package after those that it needs.
NEEDS: dict[str, tuple[str, ...]] = {
    "gates": (),
    "localsearch": (),
    "moe-runtime": ("gates", "localsearch"),
    "benchmarks": ("gates", "localsearch", "moe-runtime"),
}
PACKAGES = tuple(NEEDS)
# Those with a folder of benchmarks.
BENCHMARKED = ("gates", "localsearch", "moe-runtime")
# What a package's tests need of its extras, and which tests look at them.
EXTRAS = {
    "moe-runtime": (
        ("./packages/moe-runtime[hf,numba,onnx,plots,tensorboard]", "accelerate>=1.8"),
        "convert or numba or onnx or plots or writers",
    ),
    "benchmarks": (("./packages/benchmarks[nlp]",), "language"),
}
# What an installation must not bring along, because the package does not declare it.
UNDECLARED = {
    "gates": ("jax", "numpy", "scipy", "torch"),
    "localsearch": ("jax", "torch"),
    "moe-runtime": (
        "jax",
        "matplotlib",
        "numba",
        "onnx",
        "onnxruntime",
        "sklearn",
        "tensorboard",
        "transformers",
        "triton",
    ),
    "benchmarks": ("jax", "transformers"),
}


def folder(package: str) -> Path:
    """Return the folder of a package, relative to the root."""
    return Path("packages") / package


def module(package: str) -> str:
    """Return the name by which a package is imported."""
    return next((ROOT / folder(package) / "src").glob("*/__init__.py")).parent.name


def distribution(package: str) -> str:
    """Return the name by which a package is installed."""
    name: str = nox.project.load_toml(folder(package) / "pyproject.toml")["project"]["name"]
    return name


def group(package: str, *names: str) -> list[str]:
    """List the requirements of some of a package's dependency groups."""
    table = nox.project.load_toml(folder(package) / "pyproject.toml")
    return list(nox.project.dependency_groups(table, *names))


def install(
    session: nox.Session,
    *packages: str,
    requirements: Iterable[str] = (),
    constraints: Path = CONSTRAINTS,
) -> None:
    """Install packages from their folders, with what they declare, at the tested versions."""
    needed = dict.fromkeys(each for name in packages for each in (*NEEDS[name], name))
    folders = [f"./{folder(each).as_posix()}" for each in needed]
    session.install(*folders, *requirements, "--constraint", str(constraints))


def run_tests(
    session: nox.Session, package: str, *options: str, env: dict[str, str] | None = None
) -> None:
    """Run a package's tests against what is installed, one process a core."""
    # At most 8: each process holds a PyTorch of its own.
    parallel = ("--numprocesses", "auto", "--maxprocesses", "8", "--dist", "worksteal")
    tests = str(folder(package) / "tests")
    session.run("pytest", *parallel, tests, *options, *session.posargs, env=env)


@nox.session(tags=["quick"])
def lint(session: nox.Session) -> None:
    """Check style, formatting, and which package may import which."""
    session.install("ruff", "import-linter", "--constraint", str(CONSTRAINTS))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    sources = ":".join(str(ROOT / folder(package) / "src") for package in PACKAGES)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


@nox.session(tags=["quick"])
def types(session: nox.Session) -> None:
    """Check types strictly: all sources in one run, then the tests of each package."""
    tests = [requirement for package in PACKAGES for requirement in group(package, "test")]
    install(session, *PACKAGES, requirements=["mypy", "scipy-stubs", *tests])
    session.run("mypy", *(str(folder(package) / "src") for package in PACKAGES))
    for package in PACKAGES:
        session.run("mypy", str(folder(package) / "tests"))


@nox.session(tags=["quick"])
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def tests(session: nox.Session, package: str) -> None:
    """Test one package with nothing installed but what it declares, then with its extras."""
    install(session, package, requirements=group(package, "test"))
    run_tests(session, package)
    if package in EXTRAS:
        extras, selected = EXTRAS[package]
        session.install(*extras, "--constraint", str(CONSTRAINTS))
        run_tests(session, package, "-k", selected)


@nox.session
def triton(session: nox.Session) -> None:
    """Test the GPU kernels without a GPU: interpreted, and compiled for sm_90 (1 GB installed)."""
    requirements = [f"./{folder('moe-runtime')}[gpu]", *group("moe-runtime", "test")]
    install(session, "moe-runtime", requirements=requirements)
    run_tests(session, "moe-runtime", "-k", "triton", env={"TRITON_INTERPRET": "1"})


@nox.session
@nox.parametrize("package", ["gates", "localsearch"], ids=["gates", "localsearch"])
def interop(session: nox.Session, package: str) -> None:
    """Test one package again on the large array libraries."""
    install(session, package, requirements=group(package, "test", "interop"))
    run_tests(session, package)


@nox.session
def lowest(session: nox.Session) -> None:
    """Test all packages at the lowest versions that they declare."""
    constraints = Path(session.create_tmp()) / "constraints-lowest.txt"
    constraints.write_text("".join(f"{line}\n" for line in lowest_versions()))
    requirements = [requirement for package in PACKAGES for requirement in group(package, "test")]
    requirements += ["./packages/benchmarks[nlp]"]
    install(session, *PACKAGES, requirements=requirements, constraints=constraints)
    for package in PACKAGES:
        run_tests(session, package)


def lowest_versions() -> list[str]:
    """Pin each declared dependency to its lower bound, the highest where several declare it."""
    lowest: dict[str, Version] = {}
    for package in PACKAGES:
        table = nox.project.load_toml(folder(package) / "pyproject.toml")
        extras = table["project"].get("optional-dependencies", {}).values()
        declared = [*table["project"]["dependencies"], *(each for some in extras for each in some)]
        for requirement in map(Requirement, [*declared, *group(package, "test")]):
            for specifier in requirement.specifier:
                name, bound = canonicalize_name(requirement.name), Version(specifier.version)
                if specifier.operator == ">=":
                    lowest[name] = max(bound, lowest.get(name, bound))
    return [f"{name}=={version}" for name, version in sorted(lowest.items())]


@nox.session(reuse_venv=False)
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def wheels(session: nox.Session, package: str) -> None:
    """Install one wheel in an empty environment, and see that it brings what it declares.

    Tests are not run again: those of `tests` run on an installed wheel too, not on the sources.
    """
    wheelhouse = str(Path(session.create_tmp()) / "wheels")
    for each in (*NEEDS[package], package):
        session.run("pip", "wheel", "--no-deps", "--wheel-dir", wheelhouse, f"./{folder(each)}")
    session.install(
        distribution(package), "--find-links", wheelhouse, "--constraint", str(CONSTRAINTS)
    )
    session.run("python", "-c", f"""
import importlib.util, {module(package)} as installed
brought = [name for name in {UNDECLARED[package]} if importlib.util.find_spec(name)]
assert not brought, f"{distribution(package)} brings {{brought}}"
assert "site-packages" in installed.__file__, installed.__file__
print("{distribution(package)}", installed.__version__, "brings only what it declares")
""")  # fmt: skip


@nox.session
def docs(session: nox.Session) -> None:
    """Run every example in the READMEs, and check the commands in them."""
    extra = f"./{folder('moe-runtime')}[hf]"
    install(session, *PACKAGES, requirements=["pytest", "pytest-markdown-docs", extra])
    readmes = [str(folder(package) / "README.md") for package in PACKAGES]
    session.run("pytest", "--markdown-docs", "README.md", "docs", *readmes)
    commands = re.findall(r"nox -s (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    for command in commands:
        if command not in globals():
            session.error(f"README.md names the nox session {command!r}, which does not exist.")


@nox.session
def quickstart(session: nox.Session) -> None:
    """Learn, search, export, serve and report on real data; `--` passes options on."""
    install(session, "benchmarks")
    session.run("moe-bench", "quickstart", *session.posargs)


@nox.session
@nox.parametrize("package", BENCHMARKED, ids=BENCHMARKED)
def bench(session: nox.Session, package: str) -> None:
    """Measure speed and memory, here and in other libraries; writes bench/results.

    Options after `--` go to every script: `--threads 2`, or `--quick` to see that all of
    moe-runtime's run.
    """
    install(session, "benchmarks")
    if package == "moe-runtime":
        install_peers(session)
    for script in sorted((ROOT / folder(package) / "bench").glob("[!_]*.py")):
        session.run("python", str(script.relative_to(ROOT)), *session.posargs)


@nox.session
def exports(session: nox.Session) -> None:
    """Export 200 random architectures, each verified against PyTorch (10 minutes)."""
    extra = f"./{folder('moe-runtime')}[onnx]"
    install(session, "moe-runtime", requirements=[extra, *group("moe-runtime", "test")])
    env = {"MOE_EXPORTS": "200"}
    run_tests(session, "moe-runtime", "-k", "every_architecture", env=env)


@nox.session
def serve(session: nox.Session) -> None:
    """Serve exported models with MLServer, and compare every answer, 30 s of load included.

    Needs Python below 3.13, as MLServer 1.7.1 does. `-- --seconds N` sets how long the load lasts.
    """
    examples = export_examples(session)
    # Not our environment: a server has no PyTorch, and MLServer's dependencies are not those
    # of constraints.txt.
    server = Path(session.create_tmp()) / "server"
    session.run("python", "-m", "venv", str(server))
    python = str(server / "bin" / "python")
    requirements = group("moe-runtime", "serve")
    session.run(python, "-m", "pip", "install", "--quiet", *requirements, external=True)
    scripts = folder("moe-runtime") / "serve"
    session.run(python, str(scripts / "check_triton.py"), examples, external=True)
    command = (python, str(scripts / "check_mlserver.py"), examples, *session.posargs)
    session.run(*command, external=True)


@nox.session
def openvino(session: nox.Session) -> None:
    """Run exported models in OpenVINO, and compare every answer with ONNX Runtime's."""
    examples = export_examples(session, *group("moe-runtime", "openvino"))
    session.run("python", str(folder("moe-runtime") / "serve" / "check_openvino.py"), examples)


def export_examples(session: nox.Session, *requirements: str) -> str:
    """Install what export needs, and export the models that are served; returns their folder."""
    extra = f"./{folder('moe-runtime')}[onnx]"
    install(session, "moe-runtime", requirements=[extra, *requirements])
    examples = Path(session.create_tmp()) / "examples"
    if examples.exists():
        shutil.rmtree(examples)
    script = folder("moe-runtime") / "serve" / "export_examples.py"
    session.run("python", str(script), str(examples))
    return str(examples)


def install_peers(session: nox.Session) -> None:
    """Install the libraries that moe-runtime is compared with."""
    session.install(*group("moe-runtime", "peers"), "--constraint", str(CONSTRAINTS))
    # Their set-up scripts ask the PyTorch that is here what to build, hence no isolation.
    session.install("setuptools", "wheel", "--constraint", str(CONSTRAINTS))
    for source in group("moe-runtime", "peers-from-source"):
        session.install(
            "--no-build-isolation",
            "--no-deps",
            source,
            env={"NO_CUDA": "1", "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"},
            # Where one cannot be fetched or built it is left out, and the results say so.
            success_codes=(0, 1),
        )
