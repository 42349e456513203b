"""URIs are clean wherever their text goes, and whole where they are opened."""

import copy
import json
import pickle
from typing import Any

import pytest
import ray.cloudpickle
import yaml

from mask_ray.config import DataSettings, TrainSettings, Uri, UriError, revealed, tracking_uri
from mask_ray.config.prediction import PredictSettings

SECRET = "s3cret"
GIVEN = f"s3://key:{SECRET}@bucket/a?scheme=http&sig={SECRET}"
CLEAN = "s3://***@bucket/a?scheme=http&sig=***"


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        (GIVEN, CLEAN),
        ("https://me:pass@host:1/a/b.zip?X-Sig=secret", "https://***@host:1/a/b.zip?X-Sig=***"),
        ("https://ghp_token@host/b.zip", "https://***@host/b.zip"),
        ("https://host/b.zip?sig=secret#sha256=ab12", "https://host/b.zip?sig=***#sha256=ab12"),
        ("https://host/b.zip?secret#secret", "https://host/b.zip?***#***"),
        ("s3://key:s/e?c#ret@bucket/a", "s3://***@bucket/a"),
        (
            "s3://b/a?endpoint_override=host%3A1&region=eu",
            "s3://b/a?endpoint_override=host%3A1&region=eu",
        ),
        ("s3://b/a?endpoint_override=me:secret@host", "s3://b/a?endpoint_override=***"),
        ("abfs://container@account.dfs/a", "abfs://container@account.dfs/a"),
        ("abfs://container:secret@account.dfs/a", "abfs://***@account.dfs/a"),
        ("postgresql://me:secret@host/db", "postgresql://***@host/db"),
        ("s3://${KEY}:${SECRET}@bucket/a", "s3://${KEY}:${SECRET}@bucket/a"),
        ("https://host/a.zip?${SIGNED}", "https://host/a.zip?${SIGNED}"),
        ("s3://${KEY}:literal@bucket/a", "s3://***@bucket/a"),
        ("/data/what?/a@b#1.zip", "/data/what?/a@b#1.zip"),
        ("file:///data/what?", "file:///data/what?"),
        ("http://127.0.0.1:1/a@b", "http://127.0.0.1:1/a@b"),
        ("http://[::1]/a@b", "http://[::1]/a@b"),
        (f"/data\n{GIVEN}", f"/data\n{CLEAN}"),
        ("synthetic:20", "synthetic:20"),
    ],
)
def test_the_text_has_no_secret(given: str, clean: str) -> None:
    assert Uri(given) == clean
    assert Uri(clean) == clean


WAYS_OUT: list[Any] = [
    str,
    repr,
    "{}".format,
    "{!r:>9}".format,
    json.dumps,
    lambda uri: yaml.safe_dump(str(uri)),
    lambda uri: pickle.dumps(uri).decode("latin-1"),
    lambda uri: ray.cloudpickle.dumps(uri).decode("latin-1"),
    lambda uri: json.dumps({uri: [uri]}),
    lambda uri: str(uri.encode()),
    lambda uri: uri + "",
    lambda uri: "".join([uri]),
]


@pytest.mark.parametrize("write", WAYS_OUT)
def test_no_way_out_has_the_secret(write: Any) -> None:
    assert SECRET not in write(Uri(GIVEN))


@pytest.mark.parametrize("write", WAYS_OUT[:4])
def test_settings_have_none_either(write: Any) -> None:
    settings = TrainSettings(data=["/photos", GIVEN], test_data=GIVEN)
    predict = PredictSettings(source=GIVEN, output="a.csv")

    for each in (settings, predict):
        assert SECRET not in write(each)
        assert SECRET not in each.model_dump_json()
        assert SECRET not in json.dumps(each.model_dump(mode="json"))
        assert SECRET not in yaml.safe_dump(each.model_dump(mode="json"))
        assert SECRET not in pickle.dumps(each).decode("latin-1")
    assert settings.data == f"/photos\n{CLEAN}"


def test_who_opens_it_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert revealed(Uri(GIVEN)) == Uri(GIVEN).full == GIVEN
    assert [line.full for line in Uri(f" {GIVEN} \n\n/data").lines()] == [GIVEN, "/data"]
    settings = DataSettings(data=["/photos", GIVEN])
    again = DataSettings(**settings.model_dump()).model_copy(update={"seed": 1})
    assert revealed(again.data) == f"/photos\n{GIVEN}"
    assert copy.deepcopy(Uri(GIVEN)).full == GIVEN


def test_names_stand_for_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS_KEY", "key")
    monkeypatch.setenv("PHOTOS_SECRET", SECRET)
    uri = Uri("s3://${PHOTOS_KEY}:${PHOTOS_SECRET}@bucket/a")

    assert uri.full == f"s3://key:{SECRET}@bucket/a"
    assert SECRET not in f"{uri}{uri!r}"
    assert (
        uri.scrub(f"cannot open {uri.full} with {SECRET}")
        == "cannot open s3://***@bucket/a with ***"
    )
    assert Uri(json.loads(json.dumps(uri))).full == uri.full
    assert Uri("/data/${PHOTOS_KEY}").full == "/data/${PHOTOS_KEY}"


def test_a_name_that_is_unset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHOTOS_SECRET", raising=False)
    with pytest.raises(UriError, match="names the environment variable PHOTOS_SECRET; it is unset"):
        _ = Uri("s3://key:${PHOTOS_SECRET}@bucket/a").full


def test_what_was_stored_without_its_secrets_says_so() -> None:
    for stored in (str(Uri(GIVEN)), pickle.loads(pickle.dumps(Uri(GIVEN)))):
        with pytest.raises(UriError, match=r"was stored without its secrets: give the address"):
            _ = Uri(stored).full


def test_texts_that_nobody_vouches_for_name_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS_SECRET", SECRET)
    assert revealed("s3://${PHOTOS_SECRET}/a") == "s3://${PHOTOS_SECRET}/a"


def test_stored_addresses_get_back_the_secrets_that_are_given_again() -> None:
    stored = str(Uri(f"/unpacked\n{GIVEN}\ns3://me:other@bucket/b"))
    restored = Uri(stored).with_secrets_of(f"https://host/a.zip\n{GIVEN}", None)

    assert restored.lines()[1].full == GIVEN
    assert restored == stored
    with pytest.raises(UriError):
        _ = restored.lines()[2].full


def test_errors_of_others_are_scrubbed() -> None:
    error = f"Invalid port: {SECRET}@bucket in {GIVEN}"
    assert SECRET not in Uri(GIVEN).scrub(error)
    assert Uri("/data").scrub(error) == error
    assert Uri("https://a:p%40ss@h/x").scrub("user p@ss failed") == "user *** failed"


def test_the_tracking_server_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET}@mlflow.example.org")

    assert str(tracking_uri()) == "https://***@mlflow.example.org"
    assert tracking_uri().full == f"https://me:{SECRET}@mlflow.example.org"
