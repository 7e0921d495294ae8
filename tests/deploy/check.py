"""What stands in deploy/ is what the tools that read it want, and what hexz-nbd is.

Run by scripts/check-deploy. Needs what scripts/setup-deploy installs.
"""

import contextlib
import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
import unittest
import urllib.parse
import urllib.request
from pathlib import Path

import kubernetes_validate
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
BINARY = Path(os.environ.get("HEXZ_NBD", TARGET / "debug" / "hexz-nbd"))
PROMTOOL = TARGET / "tools" / "bin" / "promtool"
HAPROXY = TARGET / "tools" / "haproxy"
SNAPSHOTS = REPOSITORY / "tests" / "data"

# Kubernetes releases that are old, and new.
KUBERNETES = ["1.30", "1.37"]

# Where hexz-nbd runs as somebody without rights.
USER = 65532


def run(*command, **options):
    options = {"check": True, "capture_output": True, "text": True, "timeout": 60} | options
    try:
        return subprocess.run([str(word) for word in command], **options)
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"{command}: {error.stdout}{error.stderr}") from error


def make_pki(place, *clients):
    run(BINARY, "certs", "init", place, "--host", "localhost")
    for name in clients:
        run(BINARY, "certs", "client", name, "--dir", place)


class Gateway:
    """A server in a process of its own, and what it says."""

    def __init__(self, process, log):
        self.process, self.log = process, log

    @property
    def port(self):
        return int(self.said("listening")["endpoint"].rsplit(":", 1)[1])

    @property
    def status_port(self):
        return int(self.said("showing the status")["address"].rsplit(":", 1)[1])

    def said(self, message, times=1):
        for _ in range(600):
            lines = self.log.read_text().splitlines()
            found = [json.loads(line) for line in lines if f'"{message}"' in line]
            found = [line for line in found if line["message"] == message]
            if len(found) >= times:
                return found[-1]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"not {times} times {message!r}: {self.log.read_text()}")

    def uri(self, export, certificates, port=None):
        certificates = urllib.parse.quote(str(certificates))
        return f"nbds://localhost:{port or self.port}/{export}?tls-certificates={certificates}"

    def status(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}/{path}") as answer:
            return answer.read().decode()


SERVED_AND_WATCHED = ["--listen=127.0.0.1:0", "--status-listen=127.0.0.1:0"]


@contextlib.contextmanager
def gateway(directory, *arguments, command=(), **options):
    """A server, until the end of the block."""
    with tempfile.NamedTemporaryFile("w+b", buffering=0, dir=directory, delete=False) as log:
        words = [*(command or [BINARY]), *arguments]
        if "--log-format=json" not in words:
            words.append("--log-format=json")
        process = subprocess.Popen(
            [str(word) for word in words], stdout=log, stderr=log, **options)
    try:
        yield Gateway(process, Path(log.name))
    finally:
        process.kill()
        process.wait()


def metrics():
    """Name to kind and labels."""
    lines = (DEPLOY / "grafana" / "metrics.txt").read_text().splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines if not line.startswith("#")}


def series():
    """Names as they stand in expressions, with their labels."""
    for name, (kind, *labels) in metrics().items():
        if kind == "histogram":
            yield f"{name}_bucket", {"le", *labels}
            yield f"{name}_sum", set(labels)
            yield f"{name}_count", set(labels)
        else:
            yield name, set(labels)


class Metrics(unittest.TestCase):
    """Prometheus and Grafana."""

    def check_expression(self, expression):
        known = dict(series())
        used = re.findall(r"\b(hexz_nbd_\w+)(?:\{([^}]*)\})?", expression)
        for name, selector in used:
            self.assertIn(name, known, expression)
            for label in re.findall(r"(\w+)\s*[=!]", selector):
                self.assertIn(label, known[name] | {"instance", "job"}, expression)
        # Grouping keeps only labels that something in the expression has.
        labels = set().union({"instance", "job"}, *(known[name] for name, _ in used))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            self.assertLessEqual({label.strip() for label in group.split(",")}, labels, expression)
        return {name for name, _ in used}

    def test_the_list_of_metrics_is_sorted_and_follows_the_conventions(self):
        names = metrics()
        self.assertEqual(list(names), sorted(names))
        for name, (kind, *_) in names.items():
            self.assertRegex(name, r"^hexz_nbd_[a-z_]+$")
            self.assertEqual(name.endswith("_total"), kind == "counter", name)

    def test_the_dashboard_knows_every_metric_and_no_other(self):
        dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
        used = set()
        identities, places = set(), set()
        for panel in dashboard["panels"]:
            self.assertNotIn(panel["id"], identities)
            identities.add(panel["id"])
            grid = panel["gridPos"]
            for x in range(grid["x"], grid["x"] + grid["w"]):
                for y in range(grid["y"], grid["y"] + grid["h"]):
                    self.assertNotIn((x, y), places, panel["title"])
                    self.assertLess(x, 24, panel["title"])
                    places.add((x, y))
            for target in panel.get("targets", []):
                used |= self.check_expression(target["expr"])
                # Grafana's variables are not for Prometheus to parse.
                plain = target["expr"].replace("$__rate_interval", "5m")
                self.check_syntax(plain)
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                self.check_expression(variable["query"]["query"])
        missing = {name for name, _ in series() if not name.endswith(("_sum", "_count"))} - used
        self.assertEqual(missing, set())

    def check_syntax(self, expression):
        with tempfile.TemporaryDirectory() as directory:
            rules = Path(directory) / "rules.yml"
            rule = {"record": "checked", "expr": expression}
            rules.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))
            run(PROMTOOL, "check", "rules", rules)

    def test_prometheus_takes_the_alerts_and_each_fires_when_it_should(self):
        place = DEPLOY / "grafana"
        run(PROMTOOL, "check", "rules", "--lint-fatal", "alerts.yml", cwd=place)
        run(PROMTOOL, "check", "config", "prometheus.yml", cwd=place)
        # The certificates that it names are not here. scripts/check-host has them.
        run(PROMTOOL, "check", "config", "--syntax-only", "prometheus-tls.yml", cwd=place)
        run(PROMTOOL, "test", "rules", "alerts_test.yml", cwd=place)
        rules = yaml.safe_load((place / "alerts.yml").read_text())["groups"][0]["rules"]
        tested = yaml.safe_load((place / "alerts_test.yml").read_text())["tests"]
        fired = {
            test["alertname"] for one in tested for test in one.get("alert_rule_test", [])
            if test["exp_alerts"]
        }
        explained = (DEPLOY / "README.md").read_text()
        for rule in rules:
            self.check_expression(rule["expr"])
            self.assertIn(rule["alert"], fired)
            self.assertIn(rule["alert"], explained)
        self.assertEqual(len(fired), len(rules))


def scraped(text):
    """Name to kind and labels, as metrics.txt has them, of what a server said at /metrics."""
    families = dict(re.findall(r"^# TYPE (hexz_nbd_\w+) (\w+)$", text, re.MULTILINE))
    found = {}
    # Without examples, which have labels of their own.
    samples = re.sub(r" # \{.*$", "", text, flags=re.MULTILINE)
    for name, labels in re.findall(r"^(hexz_nbd_\w+)(?:\{(.*)\})? [^ ]+$", samples, re.MULTILINE):
        suffix = re.search(r"(_total|_bucket|_sum|_count|_info)?$", name)[0]
        family = name if name in families else name.removesuffix(suffix)
        kind = families[family]
        keys = set(re.findall(r'(\w+)="(?:[^"\\]|\\.)*"', labels)) - {"le"}
        # As they are asked for: a histogram by its family, others by what a sample is called.
        name, kind = (family, kind) if kind == "histogram" else (name, "gauge" if kind == "info" else kind)
        known = found.setdefault(name, (kind, keys))
        assert known == (kind, keys), f"{name}: {known} and {(kind, keys)}"
    return found


def listed():
    return {name: (kind, set(labels)) for name, (kind, *labels) in metrics().items()}


class Scraped(unittest.TestCase):
    """What a real server says, beside what dashboard and rules ask for, which is in metrics.txt."""

    def test_a_server_says_what_is_listed_and_no_more(self):
        # Of a server that scripts/check-host has, or that somebody has somewhere.
        if "METRICS" not in os.environ:
            self.skipTest("no file was given with --metrics")
        found = scraped(Path(os.environ["METRICS"]).read_text())
        self.assertGreater(len(found), 12)
        self.assertLessEqual(found.items(), listed().items())

    def test_a_server_to_which_everything_has_happened_says_all_that_is_listed(self):
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        pki, snapshots = directory / "pki", directory / "snapshots"
        snapshots.mkdir()
        for name in ["v082-ext4.hxz", "h-flip-block.hxz"]:
            shutil.copy(SNAPSHOTS / name, snapshots)
        make_pki(pki, "alice", "mallory")
        run(BINARY, "certs", "revoke", "mallory", "--dir", pki)
        server = self.enterContext(gateway(
            directory, "--tls-cert", pki / "srv.pem", "--max-connections-per-address=2", "--metrics-identities",
            *SERVED_AND_WATCHED, snapshots))
        run("/usr/bin/nbdcopy", server.uri("v082-ext4", pki / "alice"), "null:")
        damaged = server.uri("h-flip-block", pki / "alice")
        self.assertNotEqual(run("/usr/bin/nbdcopy", damaged, "null:", check=False).returncode, 0)
        revoked = server.uri("v082-ext4", pki / "mallory")
        self.assertNotEqual(run("/usr/bin/nbdinfo", revoked, check=False).returncode, 0)
        with contextlib.ExitStack() as sockets:
            for _ in range(3):
                sockets.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            server.process.send_signal(signal.SIGHUP)
            server.said("reloaded")
            for _ in range(100):
                found = scraped(server.status("metrics"))
                if found == listed():
                    break
                time.sleep(0.1)
        self.assertEqual(found, listed())


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


class Kubernetes(unittest.TestCase):
    def test_the_api_takes_every_object(self):
        kustomization = documents("kustomization.yaml")[0]
        files = {path.name for path in (DEPLOY / "kubernetes").iterdir()}
        # The Certificate is of cert-manager, whose schema is not here, and not part of the base.
        rest = {"kustomization.yaml", "certificate.yaml"}
        self.assertEqual(files - rest, set(kustomization["resources"]))
        for name in kustomization["resources"]:
            for document in documents(name):
                for version in KUBERNETES:
                    kubernetes_validate.validate(document, version, strict=True)

    def test_a_mistake_is_noticed(self):
        deployment = documents("deployment.yaml")[0]
        deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, KUBERNETES[0], strict=True)

    def test_everything_is_about_the_same_pods(self):
        deployment = documents("deployment.yaml")[0]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        self.assertGreater(deployment["spec"]["replicas"], 1)
        selectors = [
            deployment["spec"]["selector"]["matchLabels"],
            documents("networkpolicy.yaml")[0]["spec"]["podSelector"]["matchLabels"],
            documents("poddisruptionbudget.yaml")[0]["spec"]["selector"]["matchLabels"],
            *(service["spec"]["selector"] for service in documents("service.yaml")),
        ]
        for selector in selectors:
            self.assertEqual(selector, labels)
        ports = {
            port["name"]: port["containerPort"]
            for port in self.container()["ports"]
        }
        for service in documents("service.yaml"):
            for port in service["spec"]["ports"]:
                self.assertEqual(ports[port["targetPort"]], port["port"])
        rules = documents("networkpolicy.yaml")[0]["spec"]["ingress"]
        self.assertEqual({port["port"] for rule in rules for port in rule["ports"]}, set(ports.values()))
        secret = documents("certificate.yaml")[0]["spec"]["secretName"]
        volume = deployment["spec"]["template"]["spec"]["volumes"][0]
        self.assertEqual(volume["projected"]["sources"][0]["secret"]["name"], secret)

    def test_pods_are_as_the_restricted_standard_wants_them(self):
        pod = documents("deployment.yaml")[0]["spec"]["template"]["spec"]
        self.assertTrue(pod["securityContext"]["runAsNonRoot"])
        self.assertEqual(pod["securityContext"]["runAsUser"], USER)
        self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertFalse(pod["automountServiceAccountToken"])
        context = self.container()["securityContext"]
        self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
        self.assertFalse(context["allowPrivilegeEscalation"])
        self.assertTrue(context["readOnlyRootFilesystem"])
        self.assertTrue(all(mount["readOnly"] for mount in self.container()["volumeMounts"]))
        self.assertIn("requests", self.container()["resources"])
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            self.assertEqual(self.container()[probe]["httpGet"]["port"], "status")

    def test_there_is_time_to_stop_in_order(self):
        pod = documents("deployment.yaml")[0]["spec"]["template"]["spec"]
        [drain] = [word for word in self.container()["args"] if word.startswith("--drain-timeout=")]
        drain = int(re.fullmatch(r"--drain-timeout=(\d+)s", drain)[1])
        # No shell: the kubelet waits by itself.
        wait = self.container()["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.assertGreater(pod["terminationGracePeriodSeconds"], wait + drain)

    def container(self):
        return documents("deployment.yaml")[0]["spec"]["template"]["spec"]["containers"][0]


class Host(unittest.TestCase):
    """What a host gets that is no container. scripts/check-host runs the units themselves."""

    def test_every_block_of_commands_in_the_readme_is_run(self):
        blocks = re.findall(r"^```(.*)\n(?:(?!```).*\n)*```$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
        tags = [block.split()[1:] for block in blocks if block.startswith("sh")]
        self.assertEqual(len(tags), len(blocks))
        self.assertTrue(all(len(tag) == 1 for tag in tags), tags)
        script = (REPOSITORY / "scripts" / "check-host").read_text()
        runs = re.findall(r'"\$\(block ([\w-]+)\)"', script)
        self.assertEqual(sorted(tag for [tag] in tags), sorted(runs))

    def test_links_of_the_readme_lead_somewhere(self):
        text = (DEPLOY / "README.md").read_text()
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            self.assertTrue((DEPLOY / link).exists(), link)

    def test_the_package_has_every_file_for_hosts(self):
        manifest = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
        deb = manifest["package"]["metadata"]["deb"]
        patterns = [source for source, _, _ in deb["assets"]]
        files = [
            path for place in ["systemd", "grafana", "haproxy", "logrotate"]
            for path in (DEPLOY / place).rglob("*") if path.is_file()
        ]
        for path in files:
            name = str(path.relative_to(REPOSITORY))
            if name == "deploy/grafana/alerts_test.yml":
                continue
            self.assertTrue(any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name)
        for script in (DEPLOY / "debian").iterdir():
            run("sh", "-n", script)

    def test_systemd_252_takes_the_unit_with_its_drop_in(self):
        analyze = shutil.which("systemd-analyze")
        version = int(run(analyze, "--version").stdout.split()[1]) if analyze else 0
        if version != 252:
            self.skipTest("there is no systemd 252 here")
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(DEPLOY / "systemd", directory, dirs_exist_ok=True)
            unit = Path(directory) / "hexz-nbd.service"
            unit.write_text(unit.read_text().replace("/usr/bin/hexz-nbd", str(BINARY)))
            said = run(analyze, "verify", "--man=no", unit, check=False,
                       env=os.environ | {"SYSTEMD_UNIT_PATH": f"{directory}:"}).stderr
        # It says so once, and goes on with the type of the drop-in.
        [line] = said.splitlines()
        self.assertRegex(line, r"Failed to parse service type, ignoring: notify-reload$")

    def test_nbdtab_has_what_nbd_client_knows(self):
        [line] = [
            line for line in (DEPLOY / "systemd/client/nbdtab").read_text().splitlines()
            if not line.startswith("#")
        ]
        device, host, export, options = line.split()
        self.assertEqual([device, host, export], ["nbd0", "nbd.example.com", "disk"])
        options = dict(option.split("=") for option in options.split(","))
        # Not port: 3.24 ignores it.
        self.assertEqual(set(options), {"certfile", "keyfile", "cacertfile"})

    def test_every_line_of_the_configuration_file_is_right_those_in_comments_too(self):
        text = (DEPLOY / "systemd/hexz-nbd.toml").read_text()
        text = re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE)
        settings = tomllib.loads(text)
        self.assertEqual(settings["allow"], {"ou": ["operators"]})
        text = text.replace("127.0.0.1:9809", "127.0.0.1:0")
        with tempfile.TemporaryDirectory() as directory:
            snapshots = Path(directory) / "snapshots"
            snapshots.mkdir()
            shutil.copy(SNAPSHOTS / "v082-ext4.hxz", snapshots)
            make_pki(directory)
            file = Path(directory) / "hexz-nbd.toml"
            for place in ["/srv/snapshots", "/var/log/hexz-nbd"]:
                text = text.replace(place, f"{directory}/{Path(place).name}")
            (Path(directory) / "hexz-nbd").mkdir()
            file.write_text(text)
            certificate = Path(directory) / "srv.pem"
            with gateway(directory, "--config", file, "--tls-cert", certificate,
                         "--listen=127.0.0.1:0") as server:
                server.said("listening")


class Image(unittest.TestCase):
    """The image cannot be built without a container engine and a registry. What can be looked at is."""

    def instructions(self):
        text = (DEPLOY / "docker" / "Dockerfile").read_text()
        lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
        return [line.split(maxsplit=1) for line in lines if line.strip()]

    def test_what_is_copied_exists_is_not_ignored_and_is_all_that_cargo_needs(self):
        ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
        kept = [line[1:] for line in ignore if line.startswith("!")]
        with tempfile.TemporaryDirectory() as context:
            for name, arguments in self.instructions():
                words = arguments.split()
                if name != "COPY" or words[0].startswith("--"):
                    continue
                for source in words[:-1]:
                    self.assertTrue((REPOSITORY / source).exists(), source)
                    self.assertIn(source, kept)
                    target = Path(context) / source
                    target.parent.mkdir(parents=True, exist_ok=True)
                    copy = shutil.copytree if (REPOSITORY / source).is_dir() else shutil.copy
                    copy(REPOSITORY / source, target)
            # Resolves the manifest and the lock file, and finds the sources of each target.
            run("cargo", "metadata", "--locked", "--format-version=1", "--no-deps", cwd=context)
            included = subprocess.run(
                ["grep", "-rhoE", r'include_(str|bytes)!\("[^"]*"\)', "src"],
                cwd=context, text=True, capture_output=True, check=False,
            ).stdout
            for path in re.findall(r'"([^"]*)"', included):
                self.assertTrue(list(Path(context, "src").rglob(Path(path).name)), path)

    def test_the_last_stage_needs_no_shell_and_runs_as_nobody(self):
        instructions = self.instructions()
        last = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
        stages = [arguments.split() for name, arguments in instructions if name == "FROM"]
        self.assertEqual(stages[0][1:], ["AS", "build"])
        self.assertRegex(stages[-1][0], r"^gcr\.io/distroless/cc-debian12:nonroot$")
        # Both stages have the same C library: Debian 12 is bookworm.
        self.assertIn("bookworm", stages[0][0])
        final = instructions[last + 1:]
        self.assertEqual({name for name, _ in final}, {"COPY", "USER", "EXPOSE", "ENTRYPOINT"})
        arguments = dict(final)
        self.assertEqual(arguments["USER"], f"{USER}:{USER}")
        [program] = json.loads(arguments["ENTRYPOINT"])
        self.assertEqual(arguments["COPY"].split()[-1], program)
        version = re.search(r'rust-version = "(.*)"', (REPOSITORY / "Cargo.toml").read_text())[1]
        self.assertEqual(stages[0][0], f"docker.io/library/rust:{version}-bookworm")


@contextlib.contextmanager
def container(directory):
    """A file system as that of the image: the program, the libraries that distroless/cc has, nothing else."""
    root = directory / "root"
    libraries = re.findall(r"(?:=> )?(/\S+) \(0x", run("ldd", BINARY).stdout)
    allowed = ["ld-linux-*.so.*", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2"]
    for library in libraries:
        name = Path(library).name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in allowed), f"distroless/cc has no {name}"
        place = root / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    (root / "usr" / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(BINARY, root / "usr/bin")
    for place in ["dev", "proc", "run", "srv", "tmp"]:
        (root / place).mkdir()
    yield root


def publish(volume, files):
    """Writes the files of a secret as the kubelet does: a directory, and links that are swapped at once."""
    fresh = volume / f"..{time.monotonic_ns()}"
    fresh.mkdir(mode=0o750)
    for name, text in files.items():
        (fresh / name).write_bytes(text)
        # defaultMode 0400, and what fsGroup adds to it.
        (fresh / name).chmod(0o440)
        os.chown(fresh / name, 0, USER)
    os.chown(fresh, 0, USER)
    link = volume / "..data_tmp"
    link.symlink_to(fresh.name)
    link.rename(volume / "..data")
    for name in files:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")


@unittest.skipUnless(os.geteuid() == 0, "only root can be another user in another root directory")
class Pod(unittest.TestCase):
    """The container of the Deployment, as far as it can be had without Kubernetes."""

    def setUp(self):
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.directory.chmod(0o755)
        self.root = self.enterContext(container(self.directory))
        spec = documents("deployment.yaml")[0]["spec"]["template"]["spec"]
        self.container = spec["containers"][0]
        mounts = {mount["name"]: mount["mountPath"] for mount in self.container["volumeMounts"]}
        self.volume = self.root / mounts["credentials"].lstrip("/")
        self.volume.mkdir(parents=True)
        self.files = {
            item["path"] for source in spec["volumes"][0]["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        snapshots = self.root / mounts["snapshots"].lstrip("/")
        snapshots.mkdir()
        for name in ["v082-ext4.hxz", "v082-enc-lz4.hxz"]:
            shutil.copy(SNAPSHOTS / name, snapshots)
        self.pki = self.directory / "pki"
        make_pki(self.pki, "alice")

    def secret(self):
        """What cert-manager writes, and a passphrase."""
        secret = {
            "tls.crt": (self.pki / "server-cert.pem").read_bytes(),
            "tls.key": (self.pki / "server-key.pem").read_bytes(),
            "ca.crt": (self.pki / "ca-cert.pem").read_bytes(),
            "passphrase": b"correct horse",
        }
        self.assertEqual(set(secret), self.files)
        return secret

    def start(self, **environment):
        known = run(BINARY, "--help").stdout
        arguments = []
        for argument in self.container["args"]:
            flag = argument.split("=")[0]
            if flag.startswith("--"):
                self.assertIn(flag, known)
            # The ports may be taken on this machine. The addresses are those that others can reach.
            arguments.append(re.sub(r"^(--(?:status-)?listen=.*):\d+$", r"\1:0", argument))
        environment = {
            variable["name"]: variable["value"] for variable in self.container["env"]
        } | environment
        return self.run_in_container(arguments, environment)

    def run_in_container(self, arguments, environment):
        # No /proc, a root that nobody can write to, a user without rights.
        script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
        command = [
            "unshare", "--mount", "bash", "-euc", script, "-", self.root,
            "setpriv", "--no-new-privs", "chroot", f"--userspec=+{USER}:+{USER}", f"--groups={USER}",
            self.root, "/usr/bin/hexz-nbd",
        ]
        self.server = self.enterContext(gateway(
            self.directory, *arguments, command=command,
            env=environment | {"PATH": os.environ["PATH"]}))
        return self.server.port

    def size(self, port, export):
        uri = self.server.uri(export, self.pki / "alice", port)
        return int(run("/usr/bin/nbdinfo", "--size", uri).stdout)

    def test_the_container_serves_with_the_secret_of_cert_manager_and_notices_a_new_one(self):
        publish(self.volume, self.secret())
        port = self.start()
        self.assertEqual(self.size(port, "v082-ext4"), 16777216)
        self.assertEqual(self.size(port, "v082-enc-lz4"), 1069133)
        run(BINARY, "certs", "server", "--force", "--dir", self.pki)
        publish(self.volume, self.secret())
        self.server.said("reloaded")
        self.assertEqual(self.size(port, "v082-ext4"), 16777216)
        plain = run("/usr/bin/nbdinfo", f"nbd://localhost:{port}/v082-ext4", check=False)
        self.assertNotEqual(plain.returncode, 0)

    def test_the_kubelet_and_prometheus_get_their_answers(self):
        publish(self.volume, self.secret())
        self.start()
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            self.server.status(self.container[probe]["httpGet"]["path"].lstrip("/"))
        self.assertIn("hexz_nbd_exports", self.server.status("metrics"))

    def test_without_a_certificate_there_is_no_server(self):
        publish(self.volume, self.secret())
        words = [word for word in self.container["args"] if not word.startswith("--tls-")]
        self.container["args"] = words
        with self.assertRaisesRegex(AssertionError, "--tls-cert"):
            self.start()

    def test_the_command_in_the_dockerfile_serves(self):
        text = (DEPLOY / "docker" / "Dockerfile").read_text()
        command = re.search(r"^#   docker run (?:.*\\\n)+.*$", text, re.MULTILINE)[0]
        words = re.sub(r"\\\n#", " ", command).split()
        volumes = [words[i + 1].split(":")[1] for i, word in enumerate(words) if word == "--volume"]
        arguments = words[words.index("hexz-nbd") + 1:]
        self.assertIn("/srv/snapshots", volumes)
        # Longer than --drain-timeout.
        self.assertGreater(int(words[words.index("--stop-timeout") + 1]), 30)
        [place] = [volume for volume in volumes if volume != "/srv/snapshots"]
        place = self.root / place.lstrip("/")
        place.mkdir(parents=True)
        for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"]:
            shutil.copy(self.pki / name, place)
            os.chown(place / name, USER, USER)
        arguments = [re.sub(r":10809$", ":0", word) for word in arguments]
        port = self.run_in_container(arguments, {})
        self.assertEqual(self.size(port, "v082-ext4"), 16777216)

    def test_a_key_that_everybody_can_read_is_refused(self):
        publish(self.volume, self.secret())
        (self.volume / "tls.key").chmod(0o444)
        with self.assertRaisesRegex(AssertionError, "0444"):
            self.start()

    def test_a_key_that_a_group_can_read_is_refused_elsewhere(self):
        publish(self.volume, self.secret())
        with self.assertRaisesRegex(AssertionError, "0440"):
            self.start(CREDENTIALS_DIRECTORY="/srv")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Balancer(unittest.TestCase):
    """Two gateways behind HAProxy with the configuration of deploy/: TLS goes through, and clients go on
    with the other one when theirs is gone."""

    def setUp(self):
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.pki = self.directory / "pki"
        make_pki(self.pki, "alice", "balancer")
        # The name is in the server's certificate. The status is where others can reach it.
        arguments = [
            "--tls-cert", self.pki / "srv.pem", "--listen=127.0.0.1:0", "--status-listen=0.0.0.0:0",
            SNAPSHOTS / "v082-ext4.hxz",
        ]
        self.gateways = [self.enterContext(gateway(self.directory, *arguments)) for _ in range(2)]
        self.port = free_port()
        text = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
        for number, one in enumerate(self.gateways, 1):
            address = f"127.0.0.1:{one.port} port {one.status_port} verifyhost localhost"
            text, count = re.subn(
                rf"192\.0\.2\.{number}:10809 port 9809 verifyhost nbd\.example\.com", address, text)
            self.assertEqual(count, 1)
        text = text.replace("bind :10809", f"bind 127.0.0.1:{self.port}")
        text = text.replace("log /dev/log local0", "log stdout format raw local0")
        text = text.replace("/etc/haproxy/ca-cert.pem", str(self.pki / "ca-cert.pem"))
        text = text.replace("/etc/haproxy/monitor.pem", str(self.pki / "balancer.pem"))
        file = self.directory / "haproxy.cfg"
        file.write_text(text)
        program = HAPROXY / "usr/sbin/haproxy"
        environment = os.environ | {"LD_LIBRARY_PATH": str(HAPROXY / "usr/lib/x86_64-linux-gnu")}
        run(program, "-c", "-f", file, env=environment)
        log = self.enterContext(open(self.directory / "haproxy.log", "w+b", buffering=0))
        process = subprocess.Popen([program, "-db", "-f", file], env=environment, stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            self.assertIsNone(process.poll(), Path(log.name).read_text())
            time.sleep(0.1)
        self.fail("HAProxy does not listen")

    def uri(self):
        return self.gateways[0].uri("v082-ext4", self.pki / "alice", self.port)

    def opened(self, number):
        return sum('"opened"' in line for line in self.gateways[number].log.read_text().splitlines())

    def test_several_connections_of_one_client_end_at_different_gateways(self):
        copies = [self.directory / name for name in ["through", "direct"]]
        run("/usr/bin/nbdcopy", "--connections=4", "--threads=4", self.uri(), copies[0])
        self.assertEqual([self.opened(0), self.opened(1)], [2, 2])
        run("/usr/bin/nbdcopy", self.gateways[0].uri("v082-ext4", self.pki / "alice"), copies[1])
        self.assertEqual(copies[0].read_bytes(), copies[1].read_bytes())

    def test_qemu_goes_on_with_the_other_gateway_when_its_own_is_killed(self):
        # Slow enough to be in the middle when its gateway is killed.
        image = (f"driver=throttle,throttle-group=slow,file.driver=nbd,file.host=localhost,file.port={self.port},"
                 "file.export=v082-ext4,file.tls-creds=tls0,file.reconnect-delay=60")
        whole = self.directory / "whole"
        run("/usr/bin/nbdcopy", self.uri(), whole)
        copy = self.directory / "copy"
        qemu = subprocess.Popen(
            ["/usr/bin/qemu-img", "dd", "-O", "raw", "bs=65536",
             "--object", "throttle-group,id=slow,x-bps-read=12000000",
             "--object", f"tls-creds-x509,id=tls0,dir={self.pki / 'alice'},endpoint=client",
             "--image-opts", f"if={image}", f"of={copy}"], stderr=subprocess.PIPE, text=True)
        before = [self.opened(0), self.opened(1)]
        # Until something was copied: who loses its gateway while it opens the image gives up.
        while not copy.exists() or copy.stat().st_blocks == 0:
            self.assertIsNone(qemu.poll(), "it ended before it was seen")
            time.sleep(0.02)
        now = [self.opened(0), self.opened(1)]
        with qemu:
            # The one that QEMU reads from.
            [number] = [n for n in range(2) if now[n] > before[n]]
            self.gateways[number].process.kill()
            _, said = qemu.communicate(timeout=60)
        self.assertEqual((qemu.returncode, said), (0, ""))
        self.assertGreater(self.opened(1 - number), before[1 - number], "it was done already")
        self.assertEqual(copy.read_bytes(), whole.read_bytes())
        # Whoever comes now is not sent there.
        for _ in range(4):
            run("/usr/bin/nbdinfo", "--size", self.uri())


if __name__ == "__main__":
    unittest.main(verbosity=2)
