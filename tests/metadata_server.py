"""A stand-in for the metadata server of Google Cloud."""

import contextlib
import http.server
import threading
import time


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server: ``values`` by name, one an answer, the last again and again."""

    def do_GET(self):
        assert self.headers["Metadata-Flavor"] == "Google"
        path, _, wait = self.path.partition("?")
        left = self.server.values[path.rsplit("/", 1)[1]]
        if wait:
            time.sleep(0.05)
        text = left.pop(0) if len(left) > 1 else left[0]
        self.server.asked.append((self.path, text))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(monkeypatch):
    """A server in the environment of this process, which says nothing until it is told to."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.values, server.asked = {"maintenance-event": ["NONE"], "preempted": ["FALSE"]}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


MAINTENANCE = "TERMINATE_ON_HOST_MAINTENANCE"
