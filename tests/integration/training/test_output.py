"""The terminal shows the lines of docs/reference/output.md, in their order, and no other line."""

import re
from dataclasses import dataclass

from tests.support.demo_run import EPOCHS, DemoRun
from tests.support.project import ROOT

# What the second column of the documented table says of lines that the run below can print.
_EVERY_10_S = "every 10 s of long work"
_STALLED = "once a minute without progress"
_EACH_EPOCH = "each epoch from scratch"
_ALWAYS = {"always", "unless resumed"}
_PERHAPS = {
    "if any do",
    "below 10 images of a class in these splits",
    "at the end of each phase",
    "if any has a recall of 0",
    "unless `--no-quantize`",
    "unless `--no-promote`",
    "if it wins",
    _STALLED,
    _EVERY_10_S,
    _EACH_EPOCH,
}


@dataclass(frozen=True)
class Row:
    """A documented line."""

    pattern: re.Pattern[str]
    printed: str


def pattern_of(line: str) -> re.Pattern[str]:
    """Match any number where a documented line has one, and any text where it has capitals."""
    parts = re.split(r"(\d+(?:\.\d+)?|\b[A-Z]{2,}\b)", line)
    return re.compile(
        "".join(
            re.escape(part) if index % 2 == 0 else r"\d+(\.\d+)?" if part[0].isdigit() else ".+"
            for index, part in enumerate(parts)
        )
    )


def documented() -> list[Row]:
    """The lines that a run without backbone weights can print, in their order."""
    page = (ROOT / "docs" / "reference" / "output.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| (.*?) \|", page, re.MULTILINE)
    assert len(rows) == page.count("\n| `"), "a line of the table cannot be read"
    return [
        Row(pattern_of(line), printed) for line, printed in rows if printed in _ALWAYS | _PERHAPS
    ]


def test_a_training_run_prints_the_documented_lines_and_nothing_else(demo: DemoRun) -> None:
    rows = documented()
    # Also what it printed on standard error: a submitted job has one log.
    lines = [line.rstrip("\n") for line in demo.job.lines]
    found = [[row for row in rows if row.pattern.fullmatch(line)] for line in lines]

    foreign = [line for line, matching in zip(lines, found, strict=True) if not matching]
    assert foreign == []
    printed = [matching[0] for matching in found]
    assert [printed.count(row) for row in rows if row.printed in _ALWAYS] == [1] * sum(
        row.printed in _ALWAYS for row in rows
    )
    assert sum(row.printed == _EACH_EPOCH for row in printed) == EPOCHS
    assert sum(row.printed == "at the end of each phase" for row in printed) == 1
    in_order = [rows.index(row) for row in printed if row.printed not in (_EVERY_10_S, _STALLED)]
    assert in_order == sorted(in_order)


def test_what_workers_and_libraries_print_is_in_the_log(demo: DemoRun) -> None:
    # Other tests run jobs in the demo's home later; times in the names sort.
    log = min((demo.home / "logs").glob("train-*"))
    assert re.fullmatch(r"train-\d{8}-\d{6}-\d+\.log", log.name)
    logged = log.read_text()
    assert "RayTrainWorker" in logged
    # The driver's own lines too, where they belong among the others.
    assert "registered as version 1 of mask-detector\n" in logged


def test_a_documented_line_matches_itself_with_other_numbers_and_no_other_line() -> None:
    pattern = pattern_of("MLflow run ID in URI, 80 images/s  0.7 s")
    assert pattern.fullmatch("MLflow run 3f2a in sqlite:///mlflow.db, 1668 images/s  12 s")
    assert not pattern.fullmatch("MLflow run 3f2a in sqlite:///mlflow.db, fast images/s  12 s")
    assert not pattern.fullmatch("WARNING MLflow run 3f2a in a, 1 images/s  12 s")
