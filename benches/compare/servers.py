"""The servers that are compared: how each is started, and that none is left behind."""

import dataclasses
import pathlib
import signal
import socket
import subprocess
import time

PATIENCE_S = 30
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Column:
    """A server in the table."""

    key: str
    # (port, state, tls) to the words of a command.
    command: object
    # Whether what it did before changes what it does next. Where not, it is started once.
    has_cache: bool = False
    has_tls: bool = True
    # A URI to fill it by, if it starts empty.
    is_filled: bool = False


def columns(images, pki, builds, load, upstream):
    """Everything that may take part, in the order of the table. `builds` are hexz-nbd by name."""

    def limit(port, _state, _tls):
        return [load, "serve-limit", "--image", images.raw, "--listen", f"127.0.0.1:{port}"]

    def memory(port, _state, tls):
        keys = ["--tls=require", f"--tls-certificates={pki}", "--tls-verify-peer"] if tls else []
        return ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), *keys, "memory", str(images.size)]

    def qcow2(port, _state, tls):
        keys = [
            "--object", f"tls-creds-x509,id=tls0,endpoint=server,dir={pki},verify-peer=yes",
            "--tls-creds", "tls0",
        ]
        return [
            "qemu-nbd", "-f", "qcow2", "-r", "--shared=0", "--persistent", "--aio=threads",
            "--cache=writeback", "-b", "127.0.0.1", "-p", str(port), *(keys if tls else []),
            images.qcow2,
        ]

    def hexz(program, snapshot):
        def command(port, state, tls):
            sizes = {"cached": images.size + images.size // 4 + 64 * MIB, "bounded": bounded(images)}
            cache = ["--cache-size", str(sizes[state])] if state in sizes else []
            keys = ["--tls-cert", pki / "srv.pem"] if tls else []
            served = images.large if state == "large" else snapshot
            return [program, "--listen", f"127.0.0.1:{port}", *cache, *keys, served]

        return command

    def hexz_upstream(port, _state, _tls):
        return [upstream, images.lz4, str(port)]

    found = [
        Column("limit", limit, has_tls=False),
        Column("memory", memory, is_filled=True),
        Column("qcow2", qcow2),
    ]
    if upstream:
        found.append(Column("upstream", hexz_upstream, has_cache=True, has_tls=False))
    for name, program in builds.items():
        for method, snapshot in (("lz4", images.lz4), ("zstd", images.zstd)):
            found.append(Column(f"{name} {method}", hexz(program, snapshot), has_cache=True))
    return {column.key: column for column in found}


def bounded(images):
    """The cache that holds a part of the image only: 256 MiB for the image of 1.5 GiB."""
    return min(256 * MIB, images.size // 6)


class Server:
    """A process that accepts connections."""

    def __init__(self, command, port, log):
        self.port, self.log = port, pathlib.Path(log)
        # It dies with this script, however that ends; Ctrl-C reaches the script alone.
        guarded = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(word) for word in guarded],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )
        try:
            self._wait(command)
        except BaseException:
            self.stop()
            raise

    def _wait(self, command):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.005)
        raise SystemExit(f"{command[0]} does not serve:\n{self.log_end()}")

    def log_end(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Fleet:
    """The servers that run. One with a cache runs for each state of it, and anew for each run that
    finds it cold."""

    def __init__(self, images, directory, load):
        self.images, self.directory, self.load = images, directory, load
        self.running = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.running.values():
            server.stop()
        self.running.clear()

    def server(self, column, state, tls):
        """A server, and whether it has just been started."""
        if not column.has_cache:
            state = None
        key = (column.key, state, tls)
        if key in self.running:
            return self.running[key], False
        server = Server(
            *self._command(column, state, tls), self.directory / f"{column.key} {state}.log"
        )
        self.running[key] = server
        if column.is_filled:
            self._fill(server, tls)
        if state == "cached":
            # Ours keeps what is wanted twice.
            for _ in range(3):
                self.load.read(server, tls, "--pattern", "sequential", "--block", "262144",
                               "--queue", "8", "--once")
        return server, True

    def stop(self, column, state, tls):
        """Stops a server that was measured cold. Others go on."""
        if column.has_cache:
            self.running.pop((column.key, state, tls)).stop()

    def _command(self, column, state, tls):
        port = free_port()
        return column.command(port, state, tls), port

    def _fill(self, server, tls):
        keys = f"?tls-certificates={self.load.pki}" if tls else ""
        scheme = "nbds" if tls else "nbd"
        uri = f"{scheme}://localhost:{server.port}/{keys}"
        done = subprocess.run(
            ["nbdcopy", str(self.images.raw), uri], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"nbdcopy cannot fill nbdkit: {done.stderr.strip()}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
