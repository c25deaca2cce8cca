"""What is said where no cluster answers, another server does, or the token is wrong; none of it needs a Ray."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from pipeline.submission.client import SubmissionError, connect, find_token

TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of another cluster: an address that is given counts


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers as Ray's does to a version request, by the path of the server."""

    body = b'{"ray_version": "2.60.0", "version": "4"}'

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        code = 200 if sent == f"Bearer {TOKEN}" else 403 if sent else 401
        self.send_response(code)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


class Website(Dashboard):
    body = b"<html>welcome</html>"


@pytest.fixture(params=[Dashboard])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_right_token_gets_in(url, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert connect(url + "/").get_address() == url
    assert connect(url.removeprefix("http://")).get_address() == url


def test_no_token_is_told_from_a_wrong_one(url, monkeypatch):
    with pytest.raises(SubmissionError, match="wants a token, and there is none here; set RAY_AUTH_TOKEN_PATH"):
        connect(url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mistaken")
    with pytest.raises(SubmissionError, match="does not accept our token") as caught:
        connect(url)
    assert "mistaken" not in str(caught.value)


@pytest.mark.parametrize("url", [Website], indirect=True)
def test_another_server_is_no_dashboard(url, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(SubmissionError, match="no Ray dashboard; its port is 8265"):
        connect(url)


class List(Dashboard):
    body = b"[42]"


@pytest.mark.parametrize("url", [List], indirect=True)
def test_another_api_is_no_dashboard(url, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(SubmissionError, match="no Ray dashboard; its port is 8265"):
        connect(url)


def test_a_port_that_speaks_no_http():
    """As the GCS at 6379, which is what people have at hand."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x12\x04\x00\x00 is no HTTP\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(SubmissionError, match="no Ray dashboard; its port is 8265"):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(5)


def test_nobody_answers():
    with pytest.raises(
        SubmissionError, match=r"no Ray cluster answers at http://127.0.0.1:1 \(.*refused\); check --addr"
    ):
        connect("http://127.0.0.1:1")
    with pytest.raises(SubmissionError, match=r"no Ray cluster answers at http://host\.invalid:8265"):
        connect("host.invalid:8265")


@pytest.mark.parametrize(
    "address",
    [
        *("ray://head:10001", "auto:8265://x", "http://", "os://head", "http://host:abc", "http://my host:8265"),
        *("http://[::1", "host:8265:1", "http://127.0.0.1:99999"),
    ],
)
def test_what_is_no_address(address):
    with pytest.raises(SubmissionError, match="is no address of a dashboard"):
        connect(address)


def test_where_the_token_is_looked_for(tmp_path, monkeypatch):
    assert find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of home\n")
    assert find_token() == "of home"
    (tmp_path / "named").write_text("of the file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert find_token() == "of the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert find_token() == "itself"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(SubmissionError, match="cannot be read"):
        find_token()
