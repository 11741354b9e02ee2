"""Everything that checks this project. Needs nothing but ``pip install nox``; a second run reuses the environments."""

from __future__ import annotations

import pathlib

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "lint", "typing", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")

# Python files outside of the package that are ours as well.
AROUND = ("docs", "examples", "noxfile.py", "tests")

# Each answers one question, and can be run alone.
BENCHMARKS = ("add", "drain", "in_process", "latency", "scale", "signatures")


def groups(*names: str) -> tuple[str, ...]:
    """Return the requirements of the dependency groups in pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, *names)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the built package; without arguments, its coverage has to be 100 %."""
    session.install(*groups("tests"), ".[starlette,yaml]")
    # By its path, not by "-m pytest": that would put the source folder into sys.path, and what is tested is what users install.
    session.run("coverage", "run", f"{session.bin}/pytest", *session.posargs)
    if not session.posargs:
        session.run("coverage", "report")


@nox.session
def crash(session: nox.Session) -> None:
    """Run what kills processes, fills disks and searches long for broken promises; takes minutes, and says where it is."""
    session.install(*groups("tests"), ".[starlette,yaml]")
    session.run(f"{session.bin}/pytest", "-m", "crash", "-v", "-s", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure; arguments: names of files in tests/benchmarks, all unless given, and ``--quick`` for a minute's look."""
    session.install(".[starlette,yaml]")
    names = [argument for argument in session.posargs if not argument.startswith("-")] or BENCHMARKS
    options = [argument for argument in session.posargs if argument.startswith("-")]
    figures = pathlib.Path(session.create_tmp(), "figures.jsonl").absolute()
    figures.unlink(missing_ok=True)
    for name in names:
        session.run("python", f"tests/benchmarks/{name}.py", "--json", str(figures), *options)
    session.log(f"The figures, with the machine's description, are in {figures}.")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, layers, and that each test says what it claims."""
    session.install(*groups("lint"), "-e", ".")
    session.run("ruff", "check", "aiotaskqueue", *AROUND)
    session.run("ruff", "format", "--check", "aiotaskqueue", *AROUND)
    session.run("lint-imports")
    session.run("interrogate", "tests")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of the package, of its examples and of its public surface as users see it."""
    session.install(*groups("typing"), "-e", ".[starlette,yaml]")
    session.run("mypy", "aiotaskqueue", "examples", "tests/typing")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a dangling reference is an error."""
    session.install(*groups("docs"), "-e", ".[starlette,yaml]")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the counter example, which counts words by tasks; arguments: ``--crash`` or ``--serve``."""
    session.install(".")
    session.run("python", "examples/counter.py", *session.posargs)


@nox.session
def demo_fastapi(session: nox.Session) -> None:
    """Run the counter example as a FastAPI application; argument: ``--serve``."""
    session.install(".[starlette]", "fastapi", "uvicorn")
    session.run("python", "examples/counter_fastapi.py", *session.posargs)
