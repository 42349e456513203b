"""README and docs agree with the code: settings, links, commands and their flags."""

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

import benchmarks
from mask_ray import cli
from mask_ray.config import IMAGE_FORMATS
from tests.support.project import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

# What a reader puts in place of these words.
PLACEHOLDERS = {"RUN_ID": "0" * 32, "N/4": "2", "DIR": "/data/photos"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"python -m ((?:jobs|mask_ray|benchmarks)(?:\.\w+)*)")


def _load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


generate: Any = _load_generator()
SETTINGS = {command.module: generate.load(command.settings) for command in generate.COMMANDS}


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def links(text: str) -> Iterator[str]:
    """Targets of links and pictures, except those on other sites."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, where the site and GitHub make the same one."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    texts = [re.sub(r"[^\w\s-]", "", text.lower()).strip() for text in plain]
    on_github = {text.replace(" ", "-") for text in texts}
    return on_github & {re.sub(r"[-\s]+", "-", text) for text in texts}


def section(page: Path, module: str) -> str:
    return page.read_text().split(f"## `{module}`", 1)[1].split("\n## ", 1)[0]


def jobs_commands() -> Iterator[tuple[str, str]]:
    """The module and the arguments of every documented command that has settings."""
    for page in PAGES:
        for language, code in FENCE.findall(page.read_text()):
            if language != "bash":
                continue
            for line in code.replace("\\\n", " ").splitlines():
                found = COMMAND.search(line)
                if found and found[1] in SETTINGS and "$(" not in line:
                    yield found[1], line[found.end() :]


COMMANDS = sorted(set(jobs_commands()))


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link} leads out of the project"
        if page != README:
            assert target.is_relative_to(DOCS), f"{link} leads out of the site"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_modules_that_exist(page: Path) -> None:
    for module in set(COMMAND.findall(page.read_text())):
        assert module.endswith(".NAME") or importlib.util.find_spec(module) is not None, module


def test_the_readme_teaches_the_way_from_photos_to_an_answer() -> None:
    text = README.read_text()

    for command in ("make demo", "make test", "jobs.train", "make serve", "curl "):
        assert command in text


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_documented_flags_are_accepted(module: str, arguments: str) -> None:
    words = shlex.split(arguments, comments=True)
    given = [PLACEHOLDERS.get(word, word) for word in words]

    cli.parse(SETTINGS[module], given, lambda run_id: {"data": "synthetic"})


def test_a_wrong_flag_is_noticed() -> None:
    with pytest.raises(SystemExit):
        cli.parse(SETTINGS["jobs.train"], ["--data", "synthetic", "--number-of-workers", "2"])


def test_every_job_has_a_documented_command() -> None:
    jobs = {f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("[!_]*.py")}

    assert jobs <= {module for module, _ in COMMANDS}
    assert jobs <= SETTINGS.keys(), "docs/generate.py lists every job"


def test_generated_pages_are_up_to_date() -> None:
    assert generate.stale_pages() == {}, "run python docs/generate.py"


def test_a_stale_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "flags.md"
    stale.write_text(generate.flags_page().replace("--num-workers", "--number-of-workers"))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "FLAGS_PAGE", stale)
    monkeypatch.setattr(generate, "SERVE_PAGE", tmp_path / "serve.md")
    (tmp_path / "serve.md").write_text(generate.serve_page())
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])

    with pytest.raises(SystemExit, match=r"flags\.md must be generated again"):
        generate.main()

    assert "number-of-workers" in stale.read_text(), "--check writes nothing"


@pytest.mark.parametrize("command", generate.COMMANDS, ids=lambda command: command.module)
def test_every_flag_is_documented_as_the_command_takes_it(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = section(generate.FLAGS_PAGE, command.module)
    if command.shares is not None:
        text += section(generate.FLAGS_PAGE, command.shares)
    with pytest.raises(SystemExit):
        cli.parse(generate.load(command.settings), ["--help"])
    # Only where an option is defined, not where a description names another.
    taken = re.findall(r"^  (--[a-z-]+(?:, --[a-z-]+)*)", capsys.readouterr().out, re.MULTILINE)
    flags = {flag for options in taken for flag in options.split(", ")} - {"--config", "--help"}

    assert flags, "the help lists flags"
    for flag in flags:
        assert f"`{flag}`" in text, flag


@pytest.mark.parametrize("name", generate.load(generate.SERVE).model_fields)
def test_every_serve_setting_is_documented(name: str) -> None:
    assert f"| `{name}` |" in generate.SERVE_PAGE.read_text()


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """Leaves out what mkdocs's own tags would import."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(each)

    listed = sorted(pages(config["nav"]))
    assert listed == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page: Path) -> None:
    for path in re.findall(
        r"`((?:mask_ray|jobs|benchmarks|tests|docs)/[\w./-]*)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def test_the_tour_leads_to_files_that_exist() -> None:
    names = re.findall(
        r"`([\w/]+(?:/|\.(?:py|json|html\.j2)))`", (DOCS / "development/tour.md").read_text()
    )
    package = [path.relative_to(ROOT / "mask_ray") for path in (ROOT / "mask_ray").rglob("*")]

    def exists(name: str) -> bool:
        found = (path for path in package if f"/{path}".endswith(f"/{name.rstrip('/')}"))
        return any(found) or (ROOT / name).exists()

    assert names
    assert [name for name in names if not exists(name)] == []


def test_variables_of_the_project_are_documented() -> None:
    code = "".join(path.read_text() for path in (ROOT / "mask_ray").rglob("*.py"))
    page = (DOCS / "reference/state-and-environment.md").read_text()

    for name in set(re.findall(r"\bMASK_RAY_[A-Z_]*[A-Z]", code)):
        assert f"`{name}`" in page, name


def test_every_metric_is_documented() -> None:
    page = (DOCS / "reference/metrics.md").read_text()
    metrics = {
        name
        for path in (ROOT / "mask_ray").rglob("metrics.py")
        for name in re.findall(r'"(mask_ray_\w+)"', path.read_text())
    }

    assert metrics
    for name in metrics:
        assert f"`{name}`" in page, name


def test_the_layers_are_those_that_are_checked() -> None:
    page = (DOCS / "development/layers.md").read_text()
    documented = [block.splitlines() for language, block in FENCE.findall(page)]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    checked = [each["layers"] for each in contracts["contracts"] if each.get("exhaustive")]

    assert documented == [["jobs", *checked[0]], checked[1]]


def test_lists_of_image_formats_are_complete() -> None:
    names = [each.name for each in IMAGE_FORMATS]
    listed = re.compile(r"\bJPEG, PNG, [^|.]*")
    lists = {page: listed.findall(page.read_text()) for page in PAGES}

    assert sum(map(len, lists.values())) >= 3
    for page, found in lists.items():
        for text in found:
            assert re.findall("|".join(names), text) == names, (page, text)


def test_every_benchmark_is_listed() -> None:
    listed = set(re.findall(r"^    python -m (benchmarks\.\w+)", (benchmarks.__doc__ or ""), re.M))
    folder = ROOT / "benchmarks"
    commands = {f"benchmarks.{path.stem}" for path in folder.glob("[!_]*.py")}
    commands |= {f"benchmarks.{path.parent.name}" for path in folder.glob("*/__main__.py")}

    assert listed == commands


def test_all_that_is_used_of_the_backbone_is_listed() -> None:
    page = (DOCS / "development/another-backbone.md").read_text()
    listed = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", page))))
    used = set()
    for path in (ROOT / "mask_ray").rglob("*.py"):
        code = path.read_text()
        used |= set(re.findall(r"\bmobilenet\.([A-Za-z]\w*)", code)) - {"py"}
        for names in re.findall(
            r"from mask_ray\.(?:models\.mobilenet|config\.backbone) import ([^\n(]+)", code
        ):
            used |= set(re.findall(r"\w+", names))

    assert {"Layer", "read_h5", "ALPHAS"} <= used
    assert used - listed == set()
