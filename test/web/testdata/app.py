"""An application that does what is hard for a proxy: redirects of every kind, cookies with
paths, a WebSocket echo and an SSE clock. It needs nothing but Python.

    python3 app.py PORT
"""

import base64
import hashlib
import json
import queue
import socketserver
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT = int(sys.argv[1])
# How long a stream waits for its next tick, in seconds.
PATIENCE = 60
# In what pieces a large body is sent, in bytes.
PIECE = 64 << 10
# What a WebSocket key is hashed with (RFC 6455, section 1.3).
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

clocks = {}

HOME = """<!doctype html><meta charset="utf-8"><title>home</title>
<h1>An application in a sandbox</h1>
<ul>
<li><a id="redirect" href="redirect?to=root&amp;code=302">redirect</a>
<li><a id="cookies" href="cookies/set">cookies</a>
<li><a id="echo" href="echo">echo</a>
</ul>
<form id="form" method="post" action="redirect?to=root&amp;code=303"><button id="send">Send</button></form>
"""


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    do_POST = do_GET

    def answer(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/":
            self.send(HOME, "text/html")
        elif url.path.endswith("/redirect"):
            self.redirect(query)
        elif url.path == "/refresh":
            self.send("<title>wait</title>", "text/html", {"Refresh": "0; url=/landed?from=refresh"})
        elif url.path.startswith("/landed"):
            self.send("<!doctype html><title>landed</title><pre id=seen style='white-space: pre-wrap'>%s</pre>" % self.seen(), "text/html")
        elif url.path == "/cookies/set":
            self.cookies()
        elif url.path in ("/echo", "/cookies/seen", "/seen"):
            self.send(self.seen(), "application/json")
        elif url.path == "/bytes":
            self.bytes(int(query["n"]))
        elif url.path == "/clock":
            self.clock(query["id"])
        elif url.path == "/tick":
            clocks[query["id"]].put(query["n"])
            self.send("", "text/plain")
        elif url.path == "/ws":
            self.websocket()
        else:
            self.send("nothing at " + url.path, "text/plain", status=404)

    def seen(self):
        """What arrived here, as JSON."""
        headers = {}
        for name, value in self.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        return json.dumps({"method": self.command, "path": self.path, "headers": headers, "received": len(self.body)})

    def send(self, text, kind, headers=None, status=200):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def bytes(self, n):
        """So many of them, made only as they are taken."""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(n))
        self.end_headers()
        piece = b"x" * PIECE
        for _ in range(n // PIECE):
            self.wfile.write(piece)
        self.wfile.write(piece[:n % PIECE])

    def redirect(self, query):
        host, guest = self.headers["Host"], self.connection.getsockname()[0]
        to = query["to"]
        begins = {
            "relative": "", "dots": "../../", "root": "/", "absolute": "http://%s/" % host, "network": "//%s/" % host,
            "loopback": "http://127.0.0.1:%d/" % PORT, "localhost": "http://localhost:%d/" % PORT,
            "guest": "http://%s:%d/" % (guest, PORT), "encoded": "/landed%2Fin//",
        }
        at = query.get("at") or begins[to] + "landed?from=" + to
        self.send("", "text/plain", {"Location": at, "Content-Location": at}, int(query["code"]))

    def cookies(self):
        self.send_response(302)
        for cookie in ("root=1; Path=/", "here=2; Path=/cookies", "bare=3", "elsewhere=4; Path=/elsewhere", "strict=5; Path=/; HttpOnly; SameSite=Strict"):
            self.send_header("Set-Cookie", cookie)
        self.send_header("Location", "/cookies/seen")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def clock(self, name):
        """Each event but the first waits until the client, who has the one before, asks for it."""
        ticks = clocks[name] = queue.Queue()
        ticks.put("0")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        while (n := ticks.get(timeout=PATIENCE)) != "end":
            self.wfile.write(b"data: %s\n\n" % n.encode())
        self.close_connection = True

    def websocket(self):
        """Echoes. Like dev servers, it takes nobody from another origin."""
        if self.headers["Origin"] != "http://" + self.headers["Host"]:
            self.send("origin %s is not of host %s" % (self.headers["Origin"], self.headers["Host"]), "text/plain", status=403)
            return
        accept = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + WEBSOCKET_GUID).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 0x7F
            extended = {126: 2, 127: 8}.get(length, 0)
            size = self.rfile.read(extended)
            if extended:
                length = int.from_bytes(size, "big")
            key = self.rfile.read(4)
            masked = self.rfile.read(length)
            mask = (key * (length // 4 + 1))[:length]
            plain = (int.from_bytes(masked, "big") ^ int.from_bytes(mask, "big")).to_bytes(length, "big")
            self.wfile.write(head[:1] + bytes([head[1] & 0x7F]) + size + plain)
            if head[0] & 0x0F == 8:  # close
                return

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self):
        """HTTPServer's own asks the DNS for its name first, however long that takes."""
        socketserver.TCPServer.server_bind(self)


Server(("0.0.0.0", PORT), App).serve_forever()
