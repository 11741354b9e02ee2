"""The project as a whole: its public surface, its documents and the examples in them."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from starlette.applications import Starlette

import aiotaskqueue
from aiotaskqueue import TaskRetryOptions, errors
from aiotaskqueue._config_files import load_queues
from aiotaskqueue._retry import backoff_usec

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Folders and files that git, nox or a tool made.
NOT_OURS = re.compile(r"\.(?!ci$|gitignore$).*|__pycache__|_build|build|dist|htmlcov|.*\.egg-info")
TEXT_SUFFIXES = {"", ".cfg", ".css", ".html", ".json", ".md", ".py", ".sql", ".toml", ".txt", ".yaml", ".yml"}

# Folders of somebody's machine; in brackets, so that this line does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.])(?:[/](?:home|root|Users|work|opt)/|[/]tmp/venv|[A-Z]:\\Users)")

# The plain name belongs to somebody else.
FOREIGN_INSTALL = re.compile(r"pip install ['\"]?aiotaskqueue(?!-embedded)")

PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def project_files() -> list[Path]:
    """Return every text file of the project."""
    return sorted(path for path in ROOT.rglob("*") if path.is_file() and path.suffix in TEXT_SUFFIXES and not is_made(path))


def is_made(path: Path) -> bool:
    """Return whether a tool made the file, or a folder that it is in."""
    return any(NOT_OURS.fullmatch(part) for part in path.relative_to(ROOT).parts)


def modules() -> list[ModuleType]:
    """Return every module of the package, imported."""
    names = [info.name for info in pkgutil.walk_packages(aiotaskqueue.__path__, "aiotaskqueue.") if not info.name.endswith("__main__")]
    return [aiotaskqueue, *(importlib.import_module(name) for name in names)]


def public_modules() -> list[ModuleType]:
    """Return the modules that users import: no part of their name begins with an underscore."""
    return [module for module in modules() if "._" not in module.__name__]


def relative_paths(pattern: re.Pattern[str]) -> list[str]:
    """Return the files in which `pattern` occurs."""
    return [str(path.relative_to(ROOT)) for path in project_files() if pattern.search(path.read_text())]


# --- the public surface --------------------------------------------------------------------------------------------


def test_the_top_level_is_what_the_design_names() -> None:
    """Users import these names from the package, and no others."""
    expected = ["AttemptRecord", "Queue", "QueueConfig", "QueueStatistics", "StoredTask", "Task", "TaskQueueService"]
    expected += ["TaskRetryOptions", "TaskState", "add", "errors"]

    assert expected == aiotaskqueue.__all__


def test_all_of_the_top_level_is_complete() -> None:
    """What the package imports for its users stands in ``__all__``; its other modules are imported by their own names."""
    public = {name for name, value in vars(aiotaskqueue).items() if not name.startswith("_") and not inspect.ismodule(value)}

    assert {*public - {"annotations"}, "errors"} == set(aiotaskqueue.__all__)


@pytest.mark.parametrize("module", [module for module in modules() if hasattr(module, "__all__")], ids=lambda module: module.__name__)
def test_every_all_is_sorted_and_true(module: ModuleType) -> None:
    """``__all__`` has constants, classes and functions in this order, by name and without repetition; each of them exists."""
    expected = sorted(set(module.__all__), key=lambda name: (not name.isupper(), name[0].islower(), name))

    assert expected == list(module.__all__)
    assert [] == [name for name in module.__all__ if not hasattr(module, name)]


def public_objects() -> Iterator[tuple[str, object]]:
    """Yield the public classes and functions of the public modules, and the public members of those classes."""
    for module in public_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) is None or not callable(value):
                continue
            if not value.__module__.startswith("aiotaskqueue"):
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                yield from (
                    (f"{module.__name__}.{name}.{member}", getattr(value, member))
                    for member, raw in vars(value).items()
                    if not member.startswith("_") and (callable(raw) or isinstance(raw, property | classmethod | staticmethod))
                )


def test_every_public_name_has_a_docstring() -> None:
    """Each public class, function, method and property says what it is for; an override may leave it to its base."""
    assert [] == sorted(name for name, value in public_objects() if not inspect.getdoc(value))


def test_every_name_of_the_top_level_is_documented() -> None:
    """A name that no page mentions does not exist for users."""
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))

    assert [] == [name for name in aiotaskqueue.__all__ if f"aiotaskqueue.{name}" not in pages]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings_are_true(module: ModuleType) -> None:
    """What a docstring shows at a prompt comes out so."""
    assert 0 == doctest.testmod(module).failed


# --- errors --------------------------------------------------------------------------------------------------------


def error_classes() -> list[type[errors.Error]]:
    """Return the classes of errors.py."""
    return [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.Error)]


def drawn_parents() -> dict[str, str | None]:
    """Return each class in the tree that the docstring of errors.py draws, with its parent."""
    branch: list[str] = []
    parents: dict[str, str | None] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)(?:  |$)", line)
        if match:
            del branch[len(match[1]) // 4 :]
            parents[match[2]] = branch[-1] if branch else None
            branch.append(match[2])
    return parents


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """The docstring of errors.py shows every exception below its base."""
    actual = {cls.__name__: None if cls is errors.Error else cls.__mro__[1].__name__ for cls in error_classes()}

    assert actual == drawn_parents()


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_every_error_knows_its_http_status(cls: type[errors.Error]) -> None:
    """Each exception names the status of an error that a web application may answer when it lets it through."""
    assert 400 <= cls.http_status <= 599


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    """pyproject.toml, the installed distribution and the newest entry of the changelog agree."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert newest is not None
    assert PYPROJECT["project"]["version"] == importlib.metadata.version(PYPROJECT["project"]["name"]) == newest[1]


def test_no_file_names_a_folder_of_a_machine() -> None:
    """The project can be built and read anywhere: no path of the place where it was written is in it."""
    assert [] == relative_paths(MACHINE_PATH)


def test_nobody_is_told_to_install_the_other_project() -> None:
    """Wherever we say how to install, we say aiotaskqueue-embedded."""
    assert [] == relative_paths(FOREIGN_INSTALL)


def test_the_readme_is_short() -> None:
    """The README has at most 120 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """Files that the README links to exist."""
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())

    assert links
    assert [] == [link for link in links if not (ROOT / link).is_file()]


def test_only_modules_that_do_not_exist_are_in_parentheses() -> None:
    """import-linter skips a layer in parentheses when it is missing: none that exists may hide there."""
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    optional = {name for layer in layers for name in re.findall(r"\((\w+)\)", layer)}
    existing = {info.name for info in pkgutil.iter_modules(aiotaskqueue.__path__)}

    assert set() == optional & existing


# --- tables --------------------------------------------------------------------------------------------------------

OPTION_NAMES = {"min": "min_backoff_seconds", "max": "max_backoff_seconds", "doublings": "max_doublings"}


def schedules() -> list[tuple[str, str]]:
    """Return the rows of the table of retry schedules: options, delays."""
    text = (ROOT / "docs" / "guides" / "retries.md").read_text()
    return re.findall(r"^\| (none|min [^|]+) \| ([0-9., ]+) \|$", text, re.MULTILINE)


@pytest.mark.parametrize(("options", "delays"), schedules())
def test_the_table_of_schedules_is_true(options: str, delays: str) -> None:
    """The delays that the guide to retries shows are those that the package computes."""
    given = dict(option.split(" ") for option in options.split(", ") if option != "none")
    retry_options = TaskRetryOptions(**{OPTION_NAMES[name]: float(value) for name, value in given.items()})  # type: ignore[arg-type]
    shown = [float(delay) for delay in delays.partition("...")[0].split(", ")]

    assert shown == [backoff_usec(retry_options, number) / 1_000_000 for number in range(1, len(shown) + 1)]


def test_the_guide_has_a_table_of_schedules() -> None:
    """The test above has rows to look at."""
    assert 6 == len(schedules())


def test_the_two_files_of_the_guide_say_the_same(tmp_path: Path) -> None:
    """queue.yaml and queue.toml in the guide to queues describe the same queues."""
    guide = (ROOT / "docs" / "guides" / "queues.md").read_text()
    queues = {}
    for suffix in ("yaml", "toml"):
        shown = re.search(rf"^```{suffix}\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
        assert shown is not None
        (tmp_path / f"queue.{suffix}").write_text(shown[1])
        queues[suffix] = load_queues(tmp_path / f"queue.{suffix}")

    assert ["default", "mail"] == [config.name for config in queues["yaml"]]
    assert queues["yaml"] == queues["toml"]


# --- examples ------------------------------------------------------------------------------------------------------


def pages() -> list[str]:
    """Return the documents that have examples."""
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in candidates if PYTHON_BLOCK.search(path.read_text())]


async def run_examples(page: str) -> dict[str, object]:
    """Run the Python blocks of a page from top to bottom in one namespace, which is returned; they may use await."""
    text = (ROOT / page).read_text()
    namespace: dict[str, object] = {"__name__": "example"}
    for match in PYTHON_BLOCK.finditer(text):
        # Blank lines in front: a traceback shows the line of the page.
        source = "\n" * text.count("\n", 0, match.start(1)) + match[1]
        running = eval(compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True), namespace)
        if inspect.iscoroutine(running):
            await running
    return namespace


@pytest.mark.anyio
@pytest.mark.parametrize("page", pages())
async def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block runs, the application of a page starts and stops, and the tests that it shows pass."""
    monkeypatch.chdir(tmp_path)
    namespace = await run_examples(page)

    app = namespace.get("app")
    if isinstance(app, web.Application):
        async with TestServer(app):
            pass
    if isinstance(app, Starlette):
        async with app.router.lifespan_context(app):
            pass
    for shown in [value for name, value in namespace.items() if name.startswith("test_")]:
        await shown()  # type: ignore[operator]  # a coroutine function, or the page is wrong


@pytest.mark.anyio
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
async def test_the_first_example_counts(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that the example's handler adds reaches the example's worker."""
    monkeypatch.chdir(tmp_path)
    app = (await run_examples(page))["app"]
    assert isinstance(app, web.Application)

    async with TestClient(TestServer(app)) as client:
        await client.post("/", data={"key": "apples"})
        counts: dict[str, int] = {}
        while not counts:
            counts = await (await client.get("/")).json()

    assert {"apples": 1} == counts


@pytest.mark.anyio
async def test_the_worker_of_the_readme_is_closed_to_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is not a delivery gets 403, and the worker does not run."""
    monkeypatch.chdir(tmp_path)
    namespace = await run_examples("README.md")
    app = namespace["app"]
    assert isinstance(app, web.Application)

    async with TestClient(TestServer(app)) as client:
        answer = await client.post("/worker", data={"key": "apples"}, headers={"X-AppEngine-QueueName": "default"})

    assert (403, {}) == (answer.status, namespace["counts"])
