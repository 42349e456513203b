"""What `--help` of a job prints."""

import re
import subprocess
import sys

import pytest

from tests.support.project import ROOT

JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")

TRAIN_FLAGS = {
    "--accumulate-steps",
    "--augmentation",
    "--augmented-views",
    "--cycle-time-ms",
    "--feature-cache",
    "--finetune-from",
    "--finetune-learning-rate",
    "--fusion-threshold-mb",
    "--gradient-compression",
    "--patience",
    "--precision",
    "--quantize",
    "--resume",
    "--scale-learning-rate",
    "--timeline",
    "--warmup-epochs",
    "--data",
    "--num-workers",
    "--min-workers",
    "--use-gpu",
    "--image-size",
    "--alpha",
    "--backbone-weights",
    "--batch-size",
    "--learning-rate",
    "--head-epochs",
    "--finetune-epochs",
    "--seed",
    "--max-failures",
    "--experiment",
    "--register-as",
    "--promote",
    "--promotion-metric",
    "--promotion-margin",
    "--min-recall",
    "--config",
}


@pytest.fixture(scope="module", params=JOBS)
def help_text(request: pytest.FixtureRequest) -> str:
    """What `--help` of a job prints, as wide as it likes."""
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{request.param}", "--help"],
        cwd=ROOT,
        env={"COLUMNS": "400", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_help_starts_with_how_to_call_the_job(help_text: str) -> None:
    usage, _, description = help_text.splitlines()[:3]
    assert usage.startswith("usage: python -m jobs.")
    assert usage.endswith(" [flags]")
    assert description.endswith(".")


def test_help_describes_every_flag(help_text: str) -> None:
    on_one_line = re.sub(r"\n {3,}", "  ", help_text)
    lines = re.findall(r"^  (-.*)$", on_one_line, re.MULTILINE)
    assert len(lines) > 2
    assert [line for line in lines if not re.fullmatch(r"\S.*?  +\S.* .*", line)] == []


def test_help_speaks_no_python(help_text: str) -> None:
    assert not [word for word in ("None", "null", "{int", "Annotated") if word in help_text]


def test_help_of_train_names_every_flag_required_first() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "jobs.train", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    flags = [line.split()[0].rstrip(",") for line in printed.splitlines() if line[:3] == "  -"]

    assert printed.startswith("usage: python -m jobs.train --data ... [flags]\n")
    assert flags[0] == "--data"
    assert set(flags) >= TRAIN_FLAGS
