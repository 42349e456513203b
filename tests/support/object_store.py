"""A server of S3's interface on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import httpx
from moto.server import ThreadedMotoServer


@contextmanager
def serve(objects: dict[str, bytes]) -> Iterator[str]:
    """Its host and port; the bucket photos has the objects, and those alone."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        # Its objects are the process's, and an earlier server's stay.
        httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="photos")
        for key, content in objects.items():
            client.put_object(Bucket="photos", Key=key, Body=content)
        yield f"{host}:{port}"
    finally:
        server.stop()


def environment(address: str) -> dict[str, str]:
    """What leads pyarrow to the server."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{address}",
    }
