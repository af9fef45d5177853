"""A server of the OpenAI API in a thread, which answers as a test says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StubServer:
    """answer(body) gives the texts of the pieces, or an exception's status and message as (status, message). goes_on:
    an event that is waited for before each piece but the first."""

    def __init__(self, answer=None, models=("org/one", "two"), key=None):
        self.answer = answer or (lambda body: [f"You said: {body['messages'][-1]['content']}"])
        self.models, self.key, self.bodies = models, key, []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.left = threading.Event()
        self.finish_reason = "stop"

    def __enter__(self):
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words):
                pass

            def do_GET(self):
                self._plain(200, {"data": [{"id": name} for name in stub.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if stub.key is not None and self.headers["authorization"] != f"Bearer {stub.key}":
                    self._plain(401, {"error": {"message": "The API key is wrong."}})
                    return
                stub.bodies.append(body)
                answered = stub.answer(body)
                if isinstance(answered, tuple):
                    self._plain(answered[0], {"error": {"message": answered[1]}})
                    return
                try:
                    self._stream(answered)
                except OSError:
                    stub.left.set()

            def _plain(self, status, body):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _stream(self, texts):
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                for number, text in enumerate(texts):
                    while number and not stub.goes_on.wait(0.02):
                        self._event({"choices": [{"delta": {}}]})  # notices a client that has left
                    self._event(text if isinstance(text, dict) else {"choices": [{"delta": {"content": text}}]})
                self._event({"choices": [{"delta": {}, "finish_reason": stub.finish_reason}]})
                self.wfile.write(b"data: [DONE]\n\n")

            def _event(self, event):
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                self.wfile.flush()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
