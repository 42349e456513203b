"""How a job ends: its last line, its exit code and its error. Ray and the jobs are stood in for."""

import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ray.exceptions import RayError

from mask_ray import cli, progress
from mask_ray.config import DataSettings, MaskRayError, TrainSettings

connect = cli.connect


@pytest.fixture
def run_job(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[Any, str, str]]]:
    """Run a job as its module does; its exit code, standard output and standard error."""
    monkeypatch.setattr(cli, "connect", lambda instead: print("connecting"))
    monkeypatch.setattr(sys, "argv", ["job", "--data", "photos"])

    def run(job: Callable[[DataSettings], dict[str, Any]]) -> tuple[Any, str, str]:
        code: Any = 0
        try:
            cli.main(DataSettings, job)
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    yield run
    progress.end_log()


def raising(error: BaseException) -> Callable[[DataSettings], NoReturn]:
    def job(settings: DataSettings) -> NoReturn:
        print("working")
        raise error

    return job


def test_the_last_line_is_the_result(run_job: Callable[..., tuple[Any, str, str]]) -> None:
    def job(settings: DataSettings) -> dict[str, Any]:
        print("working")
        return {"data": settings.data, "test": {"accuracy": 0.5, "recall": {"ä": 1.0}}}

    code, out, err = run_job(job)

    assert code == 0
    assert err == ""
    connecting, working, result = out.splitlines()
    assert (connecting, working) == ("connecting", "working")
    assert json.loads(result) == {"data": "photos", "test": {"accuracy": 0.5, "recall": {"ä": 1.0}}}


def test_an_error_that_the_user_can_mend_is_one_line(
    run_job: Callable[..., tuple[Any, str, str]],
) -> None:
    error = MaskRayError("data has no images;\n  got\n\nphotos")
    assert run_job(raising(error)) == (
        1,
        "connecting\nworking\n",
        "error: --data has no images; got photos\n",
    )


def test_an_error_names_the_file_with_the_output_of_libraries(
    run_job: Callable[..., tuple[Any, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
) -> None:
    monkeypatch.setattr(cli, "connect", lambda instead: cli._start_log())
    code, out, err = run_job(raising(MaskRayError("training failed")))

    (log,) = (home / "logs").iterdir()
    assert (code, out, err) == (1, "", f"error: training failed (log: {log})\n")
    assert log.read_text() == "working\n"


def test_a_home_that_cannot_be_written_leaves_the_log_in_the_temporary_folder(
    run_job: Callable[..., tuple[Any, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "home").write_text("a file in the place of the folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "connect", lambda instead: cli._start_log())
    _, _, err = run_job(raising(MaskRayError("training failed")))

    (log,) = tmp_path.glob("*/*.log")
    assert err == f"error: training failed (log: {log})\n"


def test_ctrl_c_ends_with_130(run_job: Callable[..., tuple[Any, str, str]]) -> None:
    assert run_job(raising(KeyboardInterrupt())) == (
        130,
        "connecting\nworking\n",
        "error: stopped: run the same command to begin again\n",
    )


def test_ctrl_c_says_how_to_resume(run_job: Callable[..., tuple[Any, str, str]]) -> None:
    _, _, err = run_job(raising(KeyboardInterrupt("resume with python -m jobs.train")))
    assert err == "error: stopped: resume with python -m jobs.train\n"


def test_on_a_terminal_the_line_begins_after_the_echo_of_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal, end = os.openpty()
    with os.fdopen(terminal, "rb"), os.fdopen(end, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with pytest.raises(SystemExit):
            cli.fail("stopped: resume it", cli.INTERRUPTED)
        with pytest.raises(SystemExit):
            cli.fail("no such model", 1)
        shown = os.read(terminal, 1000).decode().splitlines()
    assert shown == ["", "error: stopped: resume it", "error: no such model"]


def test_ctrl_c_while_settings_are_read_is_one_line_too(
    run_job: Callable[..., tuple[Any, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupted)
    code, _, err = run_job(raising(KeyboardInterrupt()))
    assert (code, err) == (130, "error: stopped: run the same command to begin again\n")


def test_a_bug_keeps_its_traceback(run_job: Callable[..., tuple[Any, str, str]]) -> None:
    with pytest.raises(ZeroDivisionError):
        run_job(raising(ZeroDivisionError()))
    assert progress.log_path() is None


def test_a_mistake_is_found_before_ray_is_started(
    run_job: Callable[..., tuple[Any, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", "--seed", "-1"])
    code, out, err = run_job(raising(AssertionError("not reached")))
    assert (code, out) == (2, "")
    assert err == "error: --data is required; --seed must be greater than or equal to 0; got '-1'\n"


@pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError, RayError])
def test_a_cluster_that_does_not_answer_is_one_line(
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    run_job: Callable[..., tuple[Any, str, str]],
) -> None:
    import ray

    def refuse(**options: Any) -> NoReturn:
        raise error("no Ray at\n127.0.0.1:1")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    monkeypatch.setattr(cli, "connect", connect)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(sys, "argv", ["job", "--data", "photos"])

    assert run_job(raising(AssertionError("not reached"))) == (
        1,
        "",
        "error: no Ray cluster answers: no Ray at 127.0.0.1:1\n",
    )


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(cli, "connect", lambda instead: None)
    monkeypatch.setattr("sys.argv", ["job", "--data=photos"])

    def job(_: object) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/out")

    with pytest.raises(SystemExit) as ended:
        cli.main(TrainSettings, job)
    assert ended.value.code == 1
    assert capfd.readouterr().err == (
        "error: a disk is full: [Errno 28] No space left on device: '/data/out'\n"
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1:8265", "https://ray.example.org"])
def test_the_url_of_a_dashboard_is_no_ray_to_run_on(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    run_job: Callable[..., tuple[Any, str, str]],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", url)
    monkeypatch.setattr(cli, "connect", connect)
    monkeypatch.setattr(sys, "argv", ["job", "--data", "photos"])

    code, out, err = run_job(raising(AssertionError("not reached")))

    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: RAY_ADDRESS is {url}, the URL of a dashboard")
    assert "`ray job submit --working-dir . -- python -m " in err
    assert "unset RAY_ADDRESS" in err
