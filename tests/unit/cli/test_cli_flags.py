"""Flags and the YAML file of --config become settings; what is wrong with them is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mask_ray import cli
from mask_ray.config import MaskRayError, TrainSettings


def parse(*arguments: str) -> TrainSettings:
    return cli.parse(TrainSettings, list(arguments))


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a user is shown for these arguments."""

    def refuse(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            parse(*arguments)
        shown = capsys.readouterr()
        assert caught.value.code == 2
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        return shown.err.removeprefix("error: ").rstrip()

    return refuse


def config_file(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_flags_become_settings() -> None:
    settings = parse(
        *("--data", "photos", "--num-workers=2", "--min-workers", "1", "--use-gpu"),
        *("--learning-rate", "5e-4", "--max-failures", "-1", "--backbone-weights", "none"),
    )

    assert settings == TrainSettings(
        data="photos",
        num_workers=2,
        min_workers=1,
        use_gpu=True,
        learning_rate=5e-4,
        max_failures=-1,
        backbone_weights="none",
    )


@pytest.mark.parametrize("data", ["", "a b,c", "[1, 2]", '"quoted"', "{x}", "-", "3"])
def test_a_value_is_taken_as_it_is_written(data: str) -> None:
    assert parse("--data=photos", f"--backbone-weights=x{data}").backbone_weights == f"x{data}"


def test_data_may_be_given_several_times() -> None:
    settings = parse("--data", "a,b", "--data=s3://c/d?e=f", "--test-data=x", "--test-data=[y]")
    assert settings == TrainSettings(data="a,b\ns3://c/d?e=f", test_data="x\n[y]")


def test_of_other_flags_the_last_counts() -> None:
    assert parse("--data=x", "--seed=1", "--seed=2").seed == 2


def test_environment_variables_set_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUM_WORKERS", "7")
    monkeypatch.setenv("ALPHA", "0.5")
    assert parse("--data", "photos") == TrainSettings(data="photos")


@pytest.mark.parametrize("key", ["num-workers", "num_workers"])
def test_a_file_may_hold_any_flag(tmp_path: Path, key: str) -> None:
    path = config_file(
        tmp_path,
        f"data: photos\n{key}: 2\nuse-gpu: true\nbackbone-weights: none\nmin-workers: null\n"
        "learning-rate: 5e-4\n",
    )

    assert parse("--config", path) == TrainSettings(
        data="photos", num_workers=2, use_gpu=True, backbone_weights="none", learning_rate=5e-4
    )


def test_flags_beat_the_file(tmp_path: Path) -> None:
    path = config_file(tmp_path, "data: file\nnum-workers: 2\nuse-gpu: true\nseed: 5\n")

    settings = parse("--data", "flag", "--no-use-gpu", f"--config={path}", "--num-workers", "1")

    assert settings == TrainSettings(data="flag", num_workers=1, use_gpu=False, seed=5)


RUN_ID = "0123456789abcdef" * 2


class TestResume:
    """Settings of the run that is resumed lie below what is given."""

    @staticmethod
    def stored(run_id: str) -> dict[str, Any]:
        """Those that the run began with, as they come out of its JSON."""
        assert run_id == RUN_ID
        began = TrainSettings(data="stored", num_workers=4, seed=5, image_size=96)
        return json.loads(began.model_dump_json())

    def test_takes_all_settings_from_the_run(self) -> None:
        resumed = cli.parse(TrainSettings, ["--resume", RUN_ID], self.stored)
        assert resumed == TrainSettings(
            data="stored", num_workers=4, seed=5, image_size=96, resume=RUN_ID
        )

    def test_lets_flags_and_the_file_change_them(self, tmp_path: Path) -> None:
        path = config_file(tmp_path, f"resume: {RUN_ID}\nnum-workers: 2\nmax-failures: 0\n")
        resumed = cli.parse(TrainSettings, ["--config", path, "--num-workers", "1"], self.stored)
        assert resumed == TrainSettings(
            data="stored", num_workers=1, max_failures=0, seed=5, image_size=96, resume=RUN_ID
        )

    def test_a_run_made_again_takes_them_likewise(self) -> None:
        again = cli.parse(TrainSettings, ["--from-run", RUN_ID, "--seed", "6"], self.stored)
        assert again == TrainSettings(
            data="stored", num_workers=4, seed=6, image_size=96, from_run=RUN_ID
        )

    def test_a_run_is_either_gone_on_with_or_made_again(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            cli.parse(TrainSettings, ["--from-run", RUN_ID, "--resume", RUN_ID], self.stored)
        assert "--resume and --from-run exclude each other" in capsys.readouterr().err

    def test_is_not_asked_for_by_other_runs(self) -> None:
        def stored(run_id: str) -> NoReturn:
            raise AssertionError("not reached")

        settings = cli.parse(TrainSettings, ["--data", "photos"], stored)
        assert settings == TrainSettings(data="photos")

    def test_of_a_run_that_is_not_there_is_one_line(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def stored(run_id: str) -> NoReturn:
            raise MaskRayError(f"no run\n{run_id}")

        with pytest.raises(SystemExit) as caught:
            cli.parse(TrainSettings, ["--resume", RUN_ID], stored)
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"error: no run {RUN_ID}\n"


def test_missing_data_is_named(refusal: Callable[..., str]) -> None:
    assert refusal() == "--data is required"


def test_a_bad_value_is_told_what_is_allowed(refusal: Callable[..., str]) -> None:
    assert refusal("--data", "photos", "--image-size", "100") == (
        "--image-size must be one of 96, 128, 160, 192, 224; got 100"
    )


@pytest.mark.parametrize("flag", ["--num-wokers", "--num-work", "--num_workers"])
def test_an_unknown_flag_is_named(refusal: Callable[..., str], flag: str) -> None:
    assert refusal("--data", "photos", flag, "2") == (
        f"there is no flag {flag}; did you mean --num-workers? --help lists all"
    )


def test_flags_that_hold_the_words_of_an_unknown_one_are_named(
    refusal: Callable[..., str],
) -> None:
    assert refusal("--data", "photos", "--epochs=3") == (
        "there is no flag --epochs; did you mean --warmup-epochs or --head-epochs or "
        "--finetune-epochs? --help lists all"
    )
    assert refusal("--data", "photos", "--colour", "red") == (
        "there is no flag --colour. --help lists all"
    )


def test_messages_name_flags_and_leave_paths_and_other_words() -> None:
    def shown(message: str) -> str:
        return cli.with_flags(TrainSettings, message)

    assert shown("min_workers must be at most num_workers (2)") == (
        "--min-workers must be at most --num-workers (2)"
    )
    assert shown("data must hold images; data is in /a/num_workers/x; seed is bad") == (
        "--data must hold images; --data is in /a/num_workers/x; --seed is bad"
    )
    assert shown("the test split of data holds; see test_data.csv") == (
        "the test split of data holds; see test_data.csv"
    )
    assert shown("head_epochs + finetune_epochs must be at least 1.") == (
        "--head-epochs + --finetune-epochs must be at least 1."
    )


@pytest.mark.parametrize("flag", ["--data", "--config"])
def test_a_flag_without_its_value_is_named(refusal: Callable[..., str], flag: str) -> None:
    assert refusal(flag) == f"argument {flag}: expected one argument"


def test_a_missing_file_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    message = refusal("--config", str(tmp_path / "nope.yaml"))
    assert message.startswith(f"--config must be a readable YAML file; got {tmp_path}/nope.yaml: ")
    assert "No such file" in message


@pytest.mark.parametrize("text", ["data: [1,\n", "data: x\n\tseed: 1\n", "a: b: c"])
def test_a_file_that_is_no_yaml_is_named(
    refusal: Callable[..., str], tmp_path: Path, text: str
) -> None:
    message = refusal("--config", config_file(tmp_path, text))
    assert message.startswith(
        f"--config must be a readable YAML file; got {tmp_path}/config.yaml: "
    )
    assert "line " in message


def test_a_binary_file_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff\xd8\xff")
    assert f"got {path}: " in refusal("--config", str(path))


def test_a_broken_file_is_not_repeated(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = config_file(tmp_path, "data: photos\nroot: secret: 0\n")
    assert refusal("--config", path) == (
        f"--config must be a readable YAML file; got {path}: "
        "mapping values are not allowed here, line 2, column 13"
    )


@pytest.mark.parametrize(("text", "held"), [("- data", "a list"), ("", "nothing"), ("x", "a str")])
def test_a_file_must_hold_a_mapping(
    refusal: Callable[..., str], tmp_path: Path, text: str, held: str
) -> None:
    assert refusal("--config", config_file(tmp_path, text)) == (
        f"--config must hold a mapping of settings; {tmp_path}/config.yaml holds {held}"
    )


@pytest.mark.parametrize("key", ["num_wokers", "config"])
def test_an_unknown_key_of_the_file_is_named(
    refusal: Callable[..., str], tmp_path: Path, key: str
) -> None:
    path = config_file(tmp_path, f"data: photos\n{key}: 1\n")
    assert refusal("--config", path) == f"{key} is not a setting"


def test_a_bad_value_in_the_file_is_told_what_is_allowed(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    path = config_file(tmp_path, "data: photos\nnum-workers: 0\n")
    assert refusal("--config", path) == ("--num-workers must be greater than or equal to 1; got 0")
