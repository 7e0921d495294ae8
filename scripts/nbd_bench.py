"""What scripts/abuse, scripts/idle-memory and benches/compare share: how the server is built and
started, and a client that can stop half way. Standard library only."""

import os
import pathlib
import random
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPTION_GO = 7
OPTION_STARTTLS = 5
REPLY_ACK = 1
PAGE = 4096


def add_binary(parser):
    """The option that says which server is measured."""
    parser.add_argument(
        "--binary",
        type=lambda path: pathlib.Path(path).resolve(),
        help="server in place of the release build",
    )


def target():
    """Where cargo puts what it builds."""
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def built(kind="bin", name="hexz-nbd"):
    """The optimised server, or an optimised tool: an `example`."""
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", f"--{kind}", name],
        cwd=ROOT,
        check=True,
    )
    release = target() / "release"
    return (release if kind == "bin" else release / "examples") / name


def allow_descriptors(wanted):
    """Raises the soft limit, which the server inherits. The hard one is the machine's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} descriptors are needed and `ulimit -Hn` allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_image(program, directory, size):
    """A raw image, and the snapshot that is made of it. The same one every time, half of it
    compressible."""
    raw, packed = directory / "disk.img", directory / "disk.hxz"
    source = random.Random(10809)
    with raw.open("wb") as file:
        for _ in range(size // (1 << 20)):
            halves = (source.randbytes(PAGE // 2) for _ in range((1 << 20) // PAGE))
            file.write(b"".join(half * 2 for half in halves))
    subprocess.run([program, "pack", raw, packed], check=True, capture_output=True)
    return raw, packed


class Certificates:
    """A CA, a server and a client, made by the program itself."""

    def __init__(self, program, directory):
        def certs(*words):
            subprocess.run([program, "certs", *words], cwd=directory, check=True, capture_output=True)

        certs("init", ".", "--host", "localhost")
        certs("client", "visitor", "--dir", ".")
        self.server = directory / "srv.pem"
        client = directory / "visitor.pem"
        self.context = ssl.create_default_context(cafile=client)
        self.context.load_cert_chain(client)


class Server:
    """The program in a process of its own, on a port of 127.0.0.1."""

    def __init__(self, program, snapshot, *flags, certificates=None):
        self.certificates = certificates
        if certificates:
            flags = (*flags, "--tls-cert", certificates.server)
        self.log = open(os.path.join(os.path.dirname(snapshot), "log"), "wb+")
        self.process = subprocess.Popen(
            [program, "--listen", "127.0.0.1:0", *flags, snapshot], stderr=self.log
        )
        self.port = self._port()

    def _port(self):
        for _ in range(600):
            found = re.search(r"listening endpoint=127.0.0.1:(\d+)", self.log_text())
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"the server does not start:\n{self.log_text()}")

    def log_text(self):
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def memory_bytes(self):
        """Resident memory without files: heap and stacks."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def is_running(self):
        return self.process.poll() is None

    def connect(self, source="127.0.0.1"):
        return Client(self.port, source, self.certificates)

    def stop(self):
        """Returns the exit code, or None if it had to be killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
        finally:
            self.log.close()


class Client:
    """One connection, as far as it is taken."""

    def __init__(self, port, source, certificates):
        self.certificates = certificates
        self.socket = socket.create_connection(
            ("127.0.0.1", port), timeout=30, source_address=(source, 0)
        )
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, count):
        parts = []
        while count:
            part = self.socket.recv(min(count, 1 << 20))
            if not part:
                raise ConnectionError("the server hung up")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def greet(self):
        greeting = self.receive(18)
        if greeting[:16] != b"NBDMAGICIHAVEOPT":
            raise ConnectionError(f"no NBD server says {greeting!r}")
        self.send(struct.pack(">I", 3))
        return self

    def option(self, code, payload=b""):
        self.send(b"IHAVEOPT" + struct.pack(">II", code, len(payload)) + payload)
        while True:
            magic, _, reply, length = struct.unpack(">QIII", self.receive(20))
            text = self.receive(length)
            if magic != 0x3E889045565A9:
                raise ConnectionError("a reply without its magic")
            if reply == REPLY_ACK:
                return
            if reply & 0x8000_0000:
                raise ConnectionError(f"option {code} was refused: {text!r}")

    def ready_for_tls(self):
        """Up to where the client's hello is expected."""
        self.greet().option(OPTION_STARTTLS)
        return self

    def open(self):
        """Up to where requests are expected, over TLS if the server has it."""
        self.greet()
        if self.certificates:
            self.option(OPTION_STARTTLS)
            self.socket = self.certificates.context.wrap_socket(
                self.socket, server_hostname="localhost"
            )
        self.option(OPTION_GO, struct.pack(">IH", 0, 0))
        return self

    @staticmethod
    def request(command, cookie, offset, length):
        return struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length)

    def read(self, offset, length):
        self.send(self.request(0, offset, offset, length))
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        if magic != 0x67446698 or cookie != offset or error:
            raise ConnectionError(f"magic {magic:#x}, cookie {cookie}, error {error}")
        return self.receive(length)

    def close(self):
        self.socket.close()
