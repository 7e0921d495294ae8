"""Upstream's own program."""

import subprocess

UPSTREAM_VERSION = "0.8.2"


def install_upstream(target):
    """Its crate as it is published, without what is not used. A few minutes the first time."""
    root = target / "upstream"
    subprocess.run(
        ["cargo", "install", "hexz-cli", "--version", UPSTREAM_VERSION, "--locked", "--root", root,
         "--target-dir", target / "upstream-build", "--no-default-features", "--features", "server,compression-zstd"],
        check=True,
    )
    return root / "bin" / "hexz"
