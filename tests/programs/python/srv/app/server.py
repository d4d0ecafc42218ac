import http.server
import signal
import socket
import subprocess
import sys
from urllib.parse import unquote

from helpers import greeting


def connect(port):
    with socket.socket() as peer:
        peer.connect_ex(("127.0.0.1", int(port)))


# What an application is not to have: whoever asks it has it do this.
HOLES = {
    "run": lambda command: subprocess.run(command.split(), check=False),
    "read": lambda path: open("/" + path).read(),
    "connect": connect,
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hole, _, what = unquote(self.path[1:]).partition("/")
        if hole in HOLES:
            HOLES[hole](what)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(greeting(self.path).encode())


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        # Clients of a benchmark leave at its end; a traceback would open this program's sources, at
        # whichever time that happens first.
        print(f"{client_address}: {sys.exc_info()[1]}", file=sys.stderr)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
