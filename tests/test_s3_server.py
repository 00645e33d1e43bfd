"""The S3 endpoint that other tests use: it must do what they take for granted."""

from typing import Any

import pytest
from s3_server import Fault, S3Server


@pytest.fixture
def client(s3: S3Server) -> Any:
    """A client that asks once: faults are to be seen."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=0.5),
    )


def test_objects_come_back_and_ranges_are_logged_with_the_bytes_sent(s3: S3Server) -> None:
    client, bucket = s3.client(), s3.bucket()
    client.put_object(Bucket=bucket, Key="a/b", Body=bytes(range(200)))
    s3.forget()
    answer = client.get_object(Bucket=bucket, Key="a/b", Range="bytes=10-19")
    assert answer["Body"].read() == bytes(range(10, 20))
    (request,) = s3.requests()
    assert (request.method, request.path, request.range) == ("GET", f"/{bucket}/a/b", "bytes=10-19")
    assert (request.status, request.sent, request.fault) == (206, 10, "")
    assert s3.filesystem().cat_file(f"{bucket}/a/b") == bytes(range(200))


@pytest.mark.parametrize("kind", ["status", "reset", "slow", "truncate", "short"])
def test_each_fault_spoils_as_many_requests_as_it_says(
    s3: S3Server, client: Any, kind: str
) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = s3.bucket()
    client.put_object(Bucket=bucket, Key="key", Body=bytes(1000))

    def read() -> int:
        # Of a range: the checksum of a whole object would tell that it is short.
        answer = client.get_object(Bucket=bucket, Key="key", Range="bytes=0-998")
        return len(answer["Body"].read())

    with s3.faults(Fault(kind, count=1, target="/key$", seconds=1)):
        if kind == "short":
            assert read() == 499
        else:
            with pytest.raises((BotoCoreError, ClientError)):
                read()
        assert read() == 999
    assert read() == 999


def test_draws_hang_on_the_request_not_on_the_order(s3: S3Server, client: Any) -> None:
    from botocore.exceptions import ClientError

    bucket = s3.bucket()
    for key in "abcdefgh":
        client.put_object(Bucket=bucket, Key=key, Body=b"x")

    def fails(key: str) -> bool:
        try:
            client.get_object(Bucket=bucket, Key=key)
        except ClientError:
            return True
        return False

    def round_of(keys: str) -> dict[str, bool]:
        with s3.faults(Fault("status", probability=0.5, seed=1)):
            return {key: fails(key) for key in keys}

    forth, back = round_of("abcdefgh"), round_of("hgfedcba")
    assert forth == back and len(set(forth.values())) == 2


@pytest.mark.parametrize("kind", ["status", "reset"])
def test_an_answer_can_be_lost_after_the_deed(s3: S3Server, client: Any, kind: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = s3.bucket()

    def put(key: str) -> None:
        client.put_object(Bucket=bucket, Key=key, Body=b"x")

    for key, applied in (("done", True), ("not", False)):
        fault = Fault(kind, method="PUT", applied=applied)
        with s3.faults(fault), pytest.raises((BotoCoreError, ClientError)):
            put(key)
    assert s3.keys(bucket) == ["done"]
