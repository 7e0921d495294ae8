"""What stands in deploy/ is what the tools that read it want, and what hexz-nbd is.

Run by scripts/check-deploy. Needs what scripts/setup-deploy installs.
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
import unittest
import urllib.parse
from contextlib import contextmanager
from pathlib import Path

import kubernetes_validate
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
BINARY = Path(os.environ.get("HEXZ_NBD", TARGET / "debug" / "hexz-nbd"))
PROMTOOL = TARGET / "tools" / "bin" / "promtool"
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


@unittest.skipUnless(os.environ.get("METRICS"), "scripts/check-host gives what a real server says")
class Scraped(unittest.TestCase):
    def test_a_real_server_has_these_metrics_and_no_others(self):
        text = Path(os.environ["METRICS"]).read_text()
        types = dict(re.findall(r"^# TYPE (hexz_nbd_\w+) (\w+)", text, re.MULTILINE))
        names = metrics()
        # A family may be named with or without what its kind adds to it.
        real = {name if name in names else f"{name}_total": kind for name, kind in types.items()}
        self.assertEqual(
            {name: kind for name, kind in real.items() if kind != "info"},
            {name: kind for name, (kind, *_) in names.items() if real.get(name) != "info"},
        )


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

    def container(self):
        return documents("deployment.yaml")[0]["spec"]["template"]["spec"]["containers"][0]


class Host(unittest.TestCase):
    """What a host gets that is no container. scripts/check-host runs the units themselves."""

    def test_links_of_the_readme_lead_somewhere(self):
        text = (DEPLOY / "README.md").read_text()
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            self.assertTrue((DEPLOY / link).exists(), link)

    def test_the_package_has_every_file_for_hosts(self):
        manifest = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
        deb = manifest["package"]["metadata"]["deb"]
        patterns = [source for source, _, _ in deb["assets"]]
        files = [path for path in (DEPLOY / "systemd").rglob("*") if path.is_file()]
        for path in files:
            name = str(path.relative_to(REPOSITORY))
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
        if "--status-listen" not in run(BINARY, "--help").stdout:
            text = re.sub(r"^status_listen.*$", "", text, flags=re.MULTILINE)
        text = text.replace("127.0.0.1:9809", "127.0.0.1:0")
        with tempfile.TemporaryDirectory() as directory:
            snapshots = Path(directory) / "snapshots"
            snapshots.mkdir()
            shutil.copy(SNAPSHOTS / "v082-ext4.hxz", snapshots)
            run(BINARY, "certs", "init", directory, "--host", "localhost")
            file = Path(directory) / "hexz-nbd.toml"
            file.write_text(text.replace("/srv/snapshots", str(snapshots)))
            server = subprocess.Popen(
                [BINARY, "--config", file, "--tls-cert", Path(directory) / "srv.pem",
                 "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
            try:
                said = ""
                for line in server.stderr:
                    said += line
                    if " listening " in line:
                        break
                self.assertIn(" listening ", said)
            finally:
                server.kill()
                server.wait()
                server.stderr.close()


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


@contextmanager
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
        run(BINARY, "certs", "init", self.pki, "--host", "localhost")
        run(BINARY, "certs", "client", "alice", "--dir", self.pki)

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
            if flag == "--status-listen" and flag not in known:
                continue  # Metrics come later than this file.
            if flag.startswith("--"):
                self.assertIn(flag, known)
            # The ports may be taken on this machine.
            arguments.append(re.sub(r"^(--(?:status-)?listen)=.*", r"\1=127.0.0.1:0", argument))
        environment = {
            variable["name"]: variable["value"] for variable in self.container["env"]
        } | environment
        log = open(self.directory / "log", "w+b", buffering=0)
        self.addCleanup(log.close)
        self.log = Path(log.name)
        # No /proc, a root that nobody can write to, a user without rights.
        script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
        server = subprocess.Popen(
            ["unshare", "--mount", "bash", "-euc", script, "-", self.root,
             "setpriv", "--no-new-privs", "chroot", f"--userspec=+{USER}:+{USER}", f"--groups={USER}",
             self.root, "/usr/bin/hexz-nbd", *arguments],
            env=environment | {"PATH": os.environ["PATH"]}, stdout=log, stderr=log)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.server = server
        return self.said("listening")["endpoint"].rsplit(":", 1)[1]

    def said(self, message, times=1):
        for _ in range(600):
            lines = self.log.read_text().splitlines()
            found = [json.loads(line) for line in lines if f'"{message}"' in line]
            found = [line for line in found if line["message"] == message]
            if len(found) >= times:
                return found[-1]
            if self.server.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"not {times} times {message!r}: {self.log.read_text()}")

    def size(self, port, export):
        client = urllib.parse.quote(str(self.pki / "alice"))
        uri = f"nbds://localhost:{port}/{export}?tls-certificates={client}"
        return int(run("/usr/bin/nbdinfo", "--size", uri).stdout)

    def test_the_container_serves_with_the_secret_of_cert_manager_and_notices_a_new_one(self):
        publish(self.volume, self.secret())
        port = self.start()
        self.assertEqual(self.size(port, "v082-ext4"), 16777216)
        self.assertEqual(self.size(port, "v082-enc-lz4"), 1069133)
        run(BINARY, "certs", "server", "--force", "--dir", self.pki)
        publish(self.volume, self.secret())
        self.said("reloaded")
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


if __name__ == "__main__":
    unittest.main(verbosity=2)
