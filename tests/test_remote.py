"""What URIs and object stores are told."""

import pytest

from dtg_ray.config import parse
from dtg_ray.errors import ConfigError, StorageError, UsageError
from dtg_ray.remote import options
from dtg_ray.s3 import goes_away
from dtg_ray.store.files import Storage, normalize
from dtg_ray.study import Study

SETTINGS = {"rois": ["r.nii"], "contrasts": ["A"]}


class TestCredentialsInAURI:
    @pytest.mark.parametrize(
        "uri",
        [
            "s3://AKIAKEY:sEcReT@bucket/prefix",
            "s3://AKIAKEY:sEc/ReT+x@bucket",
            "s3a://AKIAKEY:sEcReT@bucket",
            "S3://AKIAKEY:sEcReT@bucket",
            "s3://sEcReT@bucket/x",
            "https://name:sEcReT@host/file.nii.gz",
        ],
    )
    @pytest.mark.parametrize("use", [Storage, Study, normalize])
    def test_are_refused_and_not_repeated(self, uri, use):
        with pytest.raises(UsageError) as caught:
            use(uri)
        for secret in ("sEc", "ReT", "AKIA"):
            assert secret not in f"{caught.value} {caught.value.hint}"
        assert "environment" in caught.value.hint

    @pytest.mark.parametrize(
        "uri",
        [
            "s3://bucket/a@b:c.nii",
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/key",
            "https://host:8080/a@b",
            "abfs://container@account.dfs.core.windows.net/a",
            "/data/a:b@c",
        ],
    )
    def test_are_not_seen_where_there_are_none(self, uri):
        assert normalize(uri) == uri


class TestOptions:
    def test_are_of_s3_alone(self):
        assert options("gs://bucket/a") == options("/data/a") == {}
        assert options("s3://bucket")["protocol"] == options("s3a://bucket")["protocol"] == "dtg-s3"

    def test_hold_the_limits(self, monkeypatch):
        assert options("s3://bucket")["attempts"] == 10
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        assert options("s3://bucket")["attempts"] == 3
        assert options("s3://bucket", concurrency=5)["config_kwargs"]["max_pool_connections"] == 5

    def test_a_limit_that_is_no_number_is_a_usage_error(self, monkeypatch):
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
        with pytest.raises(UsageError, match="AWS_MAX_ATTEMPTS: got 'many', expected a number"):
            options("s3://bucket")

    def test_hold_the_encryption(self):
        assert options("s3://bucket")["s3_additional_kwargs"] == {}
        given = options("s3://bucket", encryption="aws:kms", kms_key="key")["s3_additional_kwargs"]
        assert given == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key"}


class TestTheConfiguration:
    def test_takes_encryption_and_concurrency(self):
        config = parse({**SETTINGS, "storage": {"encryption": "aws:kms", "kms_key": "key", "concurrency": 8}}).storage
        assert (config.encryption, config.kms_key, config.concurrency) == ("aws:kms", "key", 8)
        assert parse(SETTINGS).storage.encryption is None

    @pytest.mark.parametrize(
        ("storage", "message"),
        [
            ({"encryption": "rot13"}, "storage.encryption"),
            ({"kms_key": "key"}, "expected encryption: aws:kms"),
            ({"encryption": "AES256", "kms_key": "key"}, "expected encryption: aws:kms"),
            ({"concurrency": 0}, "storage.concurrency"),
            ({"secret": "x"}, "storage.secret"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, storage, message):
        with pytest.raises(ConfigError, match=message):
            parse({**SETTINGS, "storage": storage})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (OSError(28, "No space left on device"), False),
        (ValueError(), False),
        (StorageError(""), False),
    ],
)
def test_only_trouble_on_the_way_goes_away(error, expected):
    assert goes_away(error) == expected
