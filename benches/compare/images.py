"""One disk image in every format that is compared. Made once and kept."""

import json
import os
import pathlib
import shutil
import stat
import subprocess

MIB = 1 << 20
BLOCK = 4096
# Of the image; the rest is what ext4 itself needs, and room that it leaves.
FILES_SHARE = 0.86
SOURCE = pathlib.Path("/usr")
LARGE_BYTES = 1 << 40


class Images:
    """`raw`, `qcow2`, `lz4` and `zstd` are paths to the same bytes. `large` is a snapshot of 1 TiB,
    holes but for the image at its start."""

    def __init__(self, directory, program, own, size, tell):
        directory.mkdir(parents=True, exist_ok=True)
        self.program, self.tell = program, tell
        self.raw = own or directory / "disk.img"
        self.qcow2, self.lz4, self.zstd, self.large = (
            directory / name for name in ("disk.qcow2", "lz4.hxz", "zstd.hxz", "large.hxz")
        )
        self.about = directory / "about.json"
        wanted = self._wanted(own, size)
        if not self._is_there(wanted):
            self.about.unlink(missing_ok=True)
            if not own:
                self._make_raw(directory, size)
            self._convert(directory)
            zeros = zero_share(self.raw)
            self.about.write_text(json.dumps({"made of": wanted, "zeros": zeros}))
        self.zeros = json.loads(self.about.read_text())["zeros"]
        self.size = self.raw.stat().st_size

    def _wanted(self, own, size):
        if not own:
            return [str(SOURCE), size]
        return [str(own), own.stat().st_size, own.stat().st_mtime_ns]

    def _is_there(self, wanted):
        files = (self.raw, self.qcow2, self.lz4, self.zstd, self.large)
        return (
            self.about.exists()
            and all(file.exists() for file in files)
            and json.loads(self.about.read_text())["made of"] == wanted
        )

    def _make_raw(self, directory, size):
        self.tell(f"making an ext4 image of {size // MIB} MiB of {SOURCE}")
        tree, sparse = directory / "tree", directory / "sparse.img"
        shutil.rmtree(tree, ignore_errors=True)
        sparse.unlink(missing_ok=True)
        try:
            copy_files(SOURCE, tree, int(size * FILES_SHARE))
            quiet(
                "mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-m", "0", "-d", tree,
                "-E", "lazy_itable_init=0", sparse, f"{size // BLOCK}",
            )
            # Zeros are data here, and no server reads less of the file than another.
            quiet("cp", "--sparse=never", sparse, self.raw)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
            sparse.unlink(missing_ok=True)

    def _convert(self, directory):
        self.tell("making qcow2 and .hxz of it")
        quiet(
            "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o",
            "compression_type=zstd", self.raw, self.qcow2,
        )
        for compression, path in (("lz4", self.lz4), ("zstd", self.zstd)):
            quiet(self.program, "pack", "--force", "--compression", compression, self.raw, path)
        self.tell("making a snapshot of 1 TiB")
        sparse = directory / "large.img"
        try:
            quiet("cp", "--sparse=always", self.raw, sparse)
            os.truncate(sparse, LARGE_BYTES)
            quiet(self.program, "pack", "--force", sparse, self.large)
        finally:
            sparse.unlink(missing_ok=True)

    def into_page_cache(self):
        for path in (self.raw, self.qcow2, self.lz4, self.zstd):
            with path.open("rb", buffering=0) as file:
                while file.read(4 * MIB):
                    pass


def check_own(image):
    """Whether an image that was not made here can be measured with."""
    if not image.is_file() or image.stat().st_size % (128 << 10):
        raise SystemExit(f"--image {image}: not a file of whole 128 KiB blocks; `truncate` helps")
    if image.stat().st_size < 256 * MIB:
        raise SystemExit(f"--image {image}: less than 256 MiB, and reads of less say little")


def quiet(*command):
    """Runs a tool, which has nothing to say unless it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def copy_files(source, target, size):
    """The first files of a tree, in the order of their names, as far as they fit: hard links where
    that is possible, which costs nothing. The same ones every time."""
    left = size
    for directory, directories, names in os.walk(source):
        directories.sort()
        for name in sorted(names):
            path = pathlib.Path(directory) / name
            try:
                status = path.lstat()
            except OSError:
                continue
            room = -(-status.st_size // BLOCK) * BLOCK
            if not stat.S_ISREG(status.st_mode) or room > left or not os.access(path, os.R_OK):
                continue
            left -= room
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)
            except OSError:
                shutil.copyfile(path, copy)
            if left < BLOCK:
                return
    if left > size // 10:
        raise SystemExit(f"{source} has too few files for such an image; take --image or --short")


def zero_share(path):
    """How much of an image is blocks of zeros."""
    zeros = blocks = 0
    nothing = bytes(BLOCK)
    with path.open("rb") as file:
        while part := file.read(4 * MIB):
            for at in range(0, len(part), BLOCK):
                blocks += 1
                zeros += part[at : at + BLOCK] == nothing
    return zeros / blocks
