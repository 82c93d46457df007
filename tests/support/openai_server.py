"""A real local HTTP server that speaks OpenAI's API, with faults to switch on. Test support.

with OpenAIServer(lambda body: "Done.") as server:
    server.faults = ["429", "hang"]     # of the first requests, in order; or a function of the request's number
    ...                                 # requests to server.url
    server.asked                        # the bodies it was sent
"""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def calls(*named):
    """A message with structured calls of (name, arguments text)."""
    entries = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(named)
    ]
    return {"role": "assistant", "content": None, "tool_calls": entries}


class OpenAIServer:
    """`answer(body)` gives the assistant's text, a whole message (with `finish_reason` if need be), an HTTP status, or
    the bytes to send.

    Faults: "close" (no answer), "cut" (half of the body, then close), "hang", "slow" (0.4 s), "drip" (a byte every
    50 ms), "429" to "503" and any other status, "429 later" (Retry-After 1), "truncated" JSON, "html", "no choices",
    "null", "bad arguments", "unknown tool", "1 MB", "not utf-8", "surrogate", "too long", "tell key".
    """

    def __init__(self, answer=lambda body: "Done.", models=("small",)):
        self.answer, self.models, self.faults = answer, models, ()
        self.refusals = {}  # status and body by the number of the request
        self.asked, self.headers, self.paths, self.times = [], [], [], []
        self.most = self._now = 0  # requests under way at a time
        self._lock, self._closing = threading.Lock(), threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128})(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def noted(self, path, headers, body):
        """Record a request; gives its fault."""
        with self._lock:
            number = len(self.asked)
            self.asked.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            if callable(self.faults):
                yield self.faults(number)
            else:
                yield self.faults[number] if number < len(self.faults) else None
        finally:
            with self._lock:
                self._now -= 1

    def wait(self, seconds):
        """Whether the server was closed meanwhile."""
        return self._closing.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    owner: OpenAIServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the acknowledgement of its head

    def do_GET(self):
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.owner.models]}
        self._send(200, json.dumps(listed).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        gone = contextlib.suppress(BrokenPipeError, ConnectionResetError)
        with self.owner.noted(self.path, dict(self.headers), body) as fault, gone:
            self._answer(body, fault)

    def _answer(self, body, fault):
        if fault == "hang" or fault == "slow":
            if self.owner.wait(30 if fault == "hang" else 0.4):
                return
        elif fault == "close":
            self.close_connection = True
            return
        elif fault and fault[:3].isdigit():
            headers = {"Retry-After": "1"} if fault.endswith("later") else {}
            self._send(int(fault[:3]), b'{"error": {"message": "as told"}}', headers=headers)
            return
        elif fault == "tell key":
            said = {"error": {"message": f"Incorrect API key provided: {self.headers['Authorization']}"}}
            self._send(401, json.dumps(said).encode())
            return
        elif fault == "too long":
            said = {"error": {"message": "This model's maximum context length is 4096 tokens.", "code": 400}}
            self._send(400, json.dumps(said).encode())
            return
        if len(self.owner.asked) - 1 in self.owner.refusals:
            self._send(*self.owner.refusals[len(self.owner.asked) - 1])
            return
        answer = self.owner.answer(body)
        if isinstance(answer, int):
            self._send(answer, b'{"error": {"message": "as told"}}')
            return
        whole = answer if isinstance(answer, bytes) else json.dumps(self._completion(body, answer, fault)).encode()
        self._spoil(whole, fault)

    def _completion(self, body, answer, fault):
        message = dict(answer) if isinstance(answer, dict) else {"role": "assistant", "content": answer}
        reason = message.pop("finish_reason", "tool_calls" if message.get("tool_calls") else "stop")
        if fault in ("null", "1 MB", "surrogate"):
            content = {"null": None, "1 MB": "x" * 2**20, "surrogate": "a\ud83db"}[fault]
            message = {"role": "assistant", "content": content}
        elif fault in ("bad arguments", "unknown tool"):
            message = calls(("add", '{"step": ') if fault == "bad arguments" else ("nothing_like_it", "{}"))
        choice = {"index": 0, "finish_reason": reason}
        if "prompt" in body:
            choice |= {"text": message["content"]}
        else:
            choice |= {"message": message}
        usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
        kind = "text_completion" if "prompt" in body else "chat.completion"
        choices = [] if fault == "no choices" else [choice]
        return {"id": "x", "object": kind, "created": 1, "model": body["model"], "choices": choices, "usage": usage}

    def _spoil(self, whole, fault):
        if fault == "truncated":
            self._send(200, whole[: len(whole) // 2])
        elif fault == "cut":
            self._send(200, whole[: len(whole) // 2], length=len(whole))
            self.close_connection = True
        elif fault == "html":
            self._send(200, b"<html><body>Sign in</body></html>", kind="text/html; charset=utf-8")
        elif fault == "not utf-8":
            self._send(200, whole.replace(b"Done.", b"\xff\xfe."))
        elif fault == "drip":
            self._head(200, "application/json", len(whole), {})
            for byte in whole:
                self.wfile.write(bytes([byte]))
                if self.owner.wait(0.05):
                    return
        else:
            self._send(200, whole)

    def _send(self, status, body, kind="application/json", headers=None, length=None):
        self._head(status, kind, len(body) if length is None else length, headers or {})
        self.wfile.write(body)

    def _head(self, status, kind, length, headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_): ...
