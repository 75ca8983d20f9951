"""Whether the storage of runs is one and the same on every node, and does what runs rely on.

Everything happens in one new directory on it, which is removed at the end. Nothing else there is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.machines import Machines, NoAnswer, answered, everywhere
from shard_dist.doctor.resources import GIB, disk

WAIT = 5.0  # seconds in which a file must show on other nodes
PIECE = 1 << 16  # bytes of the file that is replaced under its readers
MOST = 256 << 20  # bytes written to measure the speed, by all nodes together
LONGEST = 3.0  # and seconds
READING = 1.0  # seconds of reading a file that is replaced
SLOW = 100.0  # MB/s: an 8B model's checkpoint of ZeRO-3 has 112 GB (14 bytes a parameter), 19 minutes at this rate
LEAST_FREE = 10.0  # GiB
OBJECTS = ("s3fs", "gcsfuse", "goofys", "blobfuse", "mount-s3", "mountpoint-s3", "rclone")
PRIVATE = ("overlay", "tmpfs", "ramfs")

_held: dict[str, IO[str]] = {}


def make(place: str) -> str:
    """A new directory in `place`, or in the nearest one above it that is there; its path."""
    path = Path(place).absolute()
    base = next(parent for parent in (path, *path.parents) if parent.is_dir())
    made = base / f".shard-doctor-{secrets.token_hex(6)}"
    made.mkdir()
    return str(made)


def remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def leave_note(folder: str, name: str) -> str:
    """A directory of this node with a file in it; why that cannot be, "" where it can."""
    if not Path(folder).is_dir():
        return "the directory that the driver has just made there is not to be seen: it is another place"
    try:
        own = Path(folder) / name
        own.mkdir()
        (own / "part").write_text(name, encoding="utf-8")
        os.replace(own / "part", own / "note")
    except OSError as error:
        return str(error)
    return ""


def read_notes(folder: str, names: list[str], seconds: float) -> dict[str, float]:
    """Seconds after which each node's file could be read; who is missing did not show in time."""
    seen: dict[str, float] = {}
    start = time.monotonic()
    while len(seen) < len(names) and (passed := time.monotonic() - start) <= seconds:
        for name in set(names) - set(seen):
            try:
                if (Path(folder) / name / "note").read_text(encoding="utf-8") == name:
                    seen[name] = passed
            except OSError:
                continue
        time.sleep(0.02)
    return seen


def replace_often(path: str, seconds: float) -> int:
    """Replace a file by others that are of one letter each; how often."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        part = Path(f"{path}.part")
        part.write_bytes(bytes([ord("a") + count % 26]) * PIECE)
        os.replace(part, path)
        count += 1
    return count


def read_often(path: str, seconds: float) -> dict[str, int]:
    """How often the file was `whole`, had a `part` only, was `missing`, or was `stale` (an error of NFS)."""
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            data = Path(path).read_bytes()
            seen["whole" if data == data[:1] * PIECE else "part"] += 1
        except FileNotFoundError:
            seen["missing"] += 1
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            seen["stale"] += 1
    return dict(seen)


def lock(path: str) -> bool:
    """Take the lock that a run's driver takes, and keep it; whether nobody had it."""
    stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - kept open: the lock goes with it
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return False
    _held[path] = stream
    return True


def unlock(path: str) -> None:
    if path in _held:
        _held.pop(path).close()


def write_speed(path: str, most: int, seconds: float) -> tuple[int, float]:
    """Bytes written and seconds, the wait for the disk included."""
    piece, written, start = os.urandom(8 << 20), 0, time.monotonic()
    with open(path, "wb", buffering=0) as stream:
        while written < most and time.monotonic() - start < seconds:
            written += stream.write(piece[: most - written])
        os.fsync(stream.fileno())
    passed = time.monotonic() - start
    os.unlink(path)
    return written, passed


def mount(folder: str, table: str = "/proc/mounts") -> tuple[str, str, str]:
    """Device, type and options of the file system that a directory lies on, by the last mount of the longest path."""
    best, found = -1, ("", "", "")
    for line in Path(table).read_text(encoding="utf-8", errors="replace").splitlines():
        device, point, kind, options = (_unescaped(word) for word in line.split()[:4])
        inside = f"{folder}/".startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, found = len(point), (device, kind, options)
    return found


def _unescaped(word: str) -> str:
    """/proc/mounts writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def storage(machines: Machines, asked: Asked) -> list[Finding]:
    """Shared, renames whole, locks seen everywhere, room and speed, on the directory where runs are kept."""
    driver = machines.nodes[0].name
    made = machines.ask(make, {driver: (asked.storage,)}, 10)[driver]
    if isinstance(made, NoAnswer):
        todo = "make the directory, or name another in cluster.storage.path"
        return [Finding("shared storage", driver, Level.fail, f"{asked.storage}: {made.why}", todo)]
    try:
        findings, sharing = shared(machines, made)
        findings += renames(machines, made, sharing) + locks(machines, made, sharing)
        return findings + room(machines, asked, made, sharing) + speed(machines, made, sharing)
    finally:
        machines.ask(remove, {driver: (made,)}, 10)


def shared(machines: Machines, folder: str) -> tuple[list[Finding], list[str]]:
    """Every node's file must be seen by every other; also the names of the nodes that share with the driver."""
    # Numbers, not names: a node's name goes into no path.
    numbers = {node.name: str(number) for number, node in enumerate(machines.nodes)}
    left = machines.ask(leave_note, {name: (folder, number) for name, number in numbers.items()}, 15)
    wrote, findings = answered("shared storage", left)
    writers = [numbers[name] for name, problem in wrote.items() if not problem]
    read, silent = answered("shared storage", machines.ask(read_notes, everywhere(machines, folder, writers, WAIT), 30))
    findings += [finding for finding in silent if finding.node in wrote]
    driver, sharing = machines.nodes[0].name, []
    for name, seen in read.items():
        if name not in wrote:
            continue
        missing = [other for other, number in numbers.items() if number in writers and number not in seen]
        if not wrote[name] and not missing:
            sharing.append(name)
        findings.append(judge_sharing(name, folder, wrote[name], missing, seen))
    return findings, sharing if driver in sharing else [driver]


def judge_sharing(node: str, folder: str, problem: str, missing: list[str], seen: Mapping[str, float]) -> Finding:
    place = str(Path(folder).parent)
    if problem or missing:
        text = f"{place}: {problem or 'files of ' + ', '.join(missing) + f' do not show within {WAIT:g} s'}"
        todo = "mount one file system at this path on every node (cluster.storage.path, run.dir below it)"
        return Finding("shared storage", node, Level.fail, text, todo)
    if len(seen) == 1:
        return Finding("shared storage", node, Level.ok, f"{place} can be written to")
    return Finding("shared storage", node, Level.ok, f"{place} is shared: files of all nodes show within {WAIT:g} s")


def renames(machines: Machines, folder: str, sharing: list[str]) -> list[Finding]:
    """Files of a run are replaced whole; a reader on any node must see the old one or the new one."""
    driver, path = machines.nodes[0].name, f"{folder}/replaced"
    machines.ask(replace_often, {driver: (path, 0.05)}, 10)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(machines.ask, replace_often, {driver: (path, 1.5 * READING)}, 15)
        answers = machines.ask(read_often, {name: (path, READING) for name in sharing}, 15)
        times = writing.result()[driver]
    if isinstance(times, NoAnswer):
        return [Finding("rename", driver, Level.fail, f"{folder}: {times.why}", "see whether the disk is full")]
    read, findings = answered("rename", answers)
    return findings + [judge_renames(name, seen) for name, seen in read.items()]


def judge_renames(node: str, seen: Mapping[str, int]) -> Finding:
    reads, broken = sum(seen.values()), seen.get("part", 0) + seen.get("missing", 0)
    if broken:
        text = f"{broken} of {reads} reads saw no whole file while it was replaced: rename is not atomic"
        todo = "keep runs on a POSIX file system (NFS 4, Lustre, GPFS, CephFS), not on an object store that is mounted"
        return Finding("rename", node, Level.fail, text, todo)
    if seen.get("stale", 0) > reads / 2:
        text = f"{seen['stale']} of {reads} reads failed with a stale file handle"
        return Finding("rename", node, Level.warn, text, "mount with NFS 4.1 or newer")
    return Finding("rename", node, Level.ok, "a file that is replaced is always whole")


def locks(machines: Machines, folder: str, sharing: list[str]) -> list[Finding]:
    """A run directory has one driver at a time: flock on one node must hold against every other."""
    driver, path = machines.nodes[0].name, f"{folder}/run.lock"
    todo = "mount with locks (NFS 4, or not nolock; Lustre: -o flock), and start no second driver in a run's directory"
    first = machines.ask(lock, {driver: (path,)}, 10)[driver]
    if first is not True:
        why = first.why if isinstance(first, NoAnswer) else "held by another"
        return [Finding("locks", driver, Level.warn, f"flock does not work there: {why}", todo)]
    tried, findings = answered("locks", machines.ask(lock, {name: (path,) for name in sharing}, 10))
    for name, taken in tried.items():
        if taken and name != driver:
            findings.append(Finding("locks", name, Level.warn, "takes a lock that the driver's node holds", todo))
        elif taken:
            findings.append(Finding("locks", name, Level.warn, "a lock that is held can be taken again", todo))
        else:
            findings.append(Finding("locks", name, Level.ok, "a lock is held against every node"))
    machines.ask(unlock, {name: (path,) for name in sharing}, 10)
    return findings


def room(machines: Machines, asked: Asked, folder: str, sharing: list[str]) -> list[Finding]:
    """Free space against cluster.storage.size_gib, and what is known of the kind of file system."""
    driver, needed = machines.nodes[0].name, asked.cluster.storage.size_gib
    free, findings = answered("storage's room", machines.ask(disk, {driver: (folder,)}, 10))
    for there in free.values():
        text, least = f"{there.free / GIB:,.0f} GiB free", needed or LEAST_FREE
        if there.free < least * GIB:
            text += f"; cluster.storage.size_gib is {needed:g}" if needed else ", little for checkpoints"
            todo = "make room: old runs' checkpoints/ first; shard-dist plan says what a run needs"
            findings.append(Finding("storage's room", "", Level.fail if needed else Level.warn, text, todo))
        else:
            findings.append(Finding("storage's room", "", Level.ok, text))
    mounts, silent = answered("file system", machines.ask(mount, {name: (folder,) for name in sharing}, 10))
    several = len(machines.nodes) > 1
    return findings + silent + [judge_mount(name, found, several) for name, found in mounts.items()]


def judge_mount(node: str, found: tuple[str, str, str], several: bool) -> Finding:
    """`found` is what `mount` returns; `several`: whether there is more than one node."""
    device, kind, options = found
    text, words = f"{kind} of {device}", options.split(",")
    known = [
        (
            any(name in f"{kind} {device}" for name in OBJECTS),
            "an object store: rename copies, nothing can be appended",
            "keep run.dir on a POSIX file system; run.ledger may be the store's URL",
        ),
        (kind in PRIVATE and several, "goes with its container or machine", "mount a volume there that all nodes have"),
        (kind.startswith("nfs") and "soft" in words, "soft: a write that times out is lost", "mount with hard"),
        (kind == "nfs" and "nolock" in words, "nolock: locks hold on one node only", "mount as NFS 4"),
        (kind == "lustre" and not {"flock", "localflock"} & set(words), "without flock", "mount with -o flock"),
    ]
    for holds, trouble, todo in known:
        if holds:
            return Finding("file system", node, Level.warn, f"{text}: {trouble}", todo)
    return Finding("file system", node, Level.ok, text)


def speed(machines: Machines, folder: str, sharing: list[str]) -> list[Finding]:
    """All nodes write at once, as in a checkpoint: at most 256 MB together and for 3 s."""
    most = MOST // len(sharing)
    calls: dict[str, tuple[Any, ...]] = {
        name: (f"{folder}/{number}.bytes", most, LONGEST) for number, name in enumerate(sharing)
    }
    found, findings = answered("write speed", machines.ask(write_speed, calls, 60))
    if not found:
        return findings
    total, longest = sum(written for written, _ in found.values()), max(passed for _, passed in found.values())
    rate, nodes = total / 1e6 / max(longest, 1e-3), f"{len(found)} nodes at once" if len(found) > 1 else "one node"
    text = f"{rate:,.0f} MB/s from {nodes} ({total / 1e6:.0f} MB in {longest:.1f} s)"
    if rate < SLOW:
        todo = (
            "checkpoints will be slow: raise train.checkpoint_every, set train.async_checkpoints, or use faster storage"
        )
        return [*findings, Finding("write speed", "", Level.warn, text, todo)]
    return [*findings, Finding("write speed", "", Level.ok, text)]
