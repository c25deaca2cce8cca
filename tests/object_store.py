"""An S3-compatible store on the loopback (moto), with a record of what it serves and faults on demand."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Request(NamedTuple):
    method: str
    path: str
    bytes: int  # of the answer's body


class ObjectStore:
    """A running server with one empty bucket."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        self.requests: list[Request] = []
        self.fail_every: int | None = None  # of all requests, one in so many is answered with 503
        self.failed = 0
        self._numbers = itertools.count(1)
        self._app = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=MotoRequestHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        filesystem, _ = fs.FileSystem.from_uri(self.uri("") + "&allow_bucket_creation=true")
        filesystem.create_dir("bucket")

    def uri(self, path: str) -> str:
        """Of a directory."""
        return f"s3://bucket/{path}?endpoint_override={self.endpoint}"

    def upload(self, directory: Path, path: str) -> str:
        """Copy the files of a directory, by nothing of ours; its URI."""
        filesystem, base = fs.FileSystem.from_uri(self.uri(path))
        for file in directory.iterdir():
            with filesystem.open_output_stream(f"{base}/{file.name}") as stream:
                stream.write(file.read_bytes())
        return self.uri(path)

    def close(self) -> None:
        self._server.shutdown()

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.fail_every is not None and next(self._numbers) % self.fail_every == 0:
            self.failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        body = b"".join(self._app(environ, start_response))
        self.requests.append(Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], len(body)))
        return [body]
