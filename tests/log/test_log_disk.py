"""The simulated disk itself: it sees everything, forgets what it may, and keeps what it must."""

import errno
import os
import signal
import subprocess

import pytest
from disk.machine import CALLS, CHANGES, Action, plan
from disk.powerloss import Disk, Kind, Order, materialise, read_journal, tree_of
from disk.workload import random_script

# Every call by which Python can change a file. The content of the files says where a call went missing.
ALL_CALLS = """
os.mkdir("a"); os.makedirs("a/b"); fd = os.open(".", os.O_RDONLY)
os.mkdir("c", dir_fd=fd); os.rmdir("c", dir_fd=fd)
file = os.open("a/x", os.O_RDWR | os.O_CREAT, 0o600)
os.write(file, b"one"); os.writev(file, [b"two", b"three"]); os.pwrite(file, b"X" * 5000, 2)
os.pwritev(file, [b"four", b"five"], 9000); os.pwritev(os.dup(file), [b"six"], 100, 0)
os.ftruncate(file, 8000); os.lseek(file, 10, os.SEEK_SET); os.write(file, b"seven")
os.fsync(file); os.fdatasync(file); os.fsync(fd)
os.posix_fallocate(file, 0, 20_000); os.truncate("a/x", 15_000); os.truncate(file, 14_000)
os.rename("a/x", "a/y"); os.replace("a/y", "a/z"); os.rename("a/z", "a/x", src_dir_fd=fd, dst_dir_fd=fd)
Path("a/b/t").write_bytes(b"hello"); Path("a/b/t").write_bytes(b"again")
with open("a/b/u", "w") as text:
    text.write("text"); text.flush(); text.truncate(2)
with open("a/b/v", "xb", buffering=0) as raw:
    raw.write(b"raw")
Path("a/b/u").unlink(); os.unlink("a/b/v", dir_fd=fd); os.remove("a/b/t")
import shutil; shutil.rmtree("a/b")
Path("w").touch(); Path("w").rename("v")
os.close(os.open("n", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=fd))
"""


@pytest.fixture
def root(scratch):
    (scratch / "root").mkdir()
    return scratch / "root"


def run_code(machine, root, code, how=None):
    disk = Disk(root)
    ended = machine.run("code", root, how or plan(CALLS), code=code)
    for event in ended.events:
        disk.apply(event)
    return disk, ended


def test_nothing_bypasses_the_journal(machine, root):
    disk, ended = run_code(machine, root, ALL_CALLS)
    assert disk.current() == tree_of(root)
    assert {event.kind for event in ended.events} == set(CHANGES) - {Kind.ALLOCATE}, (
        "an allocation is a new length"
    )
    assert tree_of(root)["a/x"][:20] == b"onXXXXXXXXsevenXXXXX"


@pytest.mark.parametrize("seed", range(3))
def test_the_journal_of_a_log_tells_what_the_directory_holds(machine, root, seed):
    disk = Disk(root)
    ended = machine.run("script", root, plan(CALLS), script=random_script(seed, 60))
    for event in ended.events:
        disk.apply(event)
    assert disk.current() == tree_of(root)
    assert any(event.kind is Kind.UNLINK for event in ended.events) and ended.answer["calls"] > 100


def test_the_model_starts_from_what_is_there(machine, root):
    materialise({"d": None, "d/f": b"x" * 9000}, root / "deep")
    disk, _ = run_code(machine, root, "os.truncate('deep/d/f', 5000); os.rename('deep/d/f', 'deep/d/g')")
    assert disk.current() == tree_of(root) == {"deep": None, "deep/d": None, "deep/d/g": b"x" * 5000}


def outcomes(disk, order, seeds=300):
    return [disk.lose_power(seed, order) for seed in range(seeds)]


WRITES = "fd = os.open('f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'a' * 6000, 0); "
SYNC_NAMES = "os.fsync(os.open('.', os.O_RDONLY)); "


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_what_was_synced_stays(machine, root, order):
    code = WRITES + SYNC_NAMES + "os.fdatasync(fd); os.pwrite(fd, b'b' * 9000, 6000); os.rename('f', 'g')"
    disk, _ = run_code(machine, root, code)
    for tree in outcomes(disk, order):
        assert set(tree) in ({"f"}, {"g"})
        (content,) = tree.values()
        assert content[:6000] == b"a" * 6000


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_what_was_not_synced_may_go(machine, root, order):
    disk, _ = run_code(machine, root, WRITES + SYNC_NAMES + "os.pwrite(fd, b'b' * 9000, 6000)")
    found = [tree["f"] for tree in outcomes(disk, order)]
    assert b"" in found and b"a" * 6000 + b"b" * 9000 in found
    assert all(set(content) <= set(b"ab\0") for content in found)
    torn = [content for content in found if b"\0" in content]
    assert bool(torn) == (order is not Order.ORDERED), "ordered data is there before the size that shows it"
    if torn:
        assert any(content[:4096].count(b"a") % 512 == 0 and b"\0" in content[:4096] for content in torn)


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_a_directory_that_was_not_synced_forgets_names(machine, root, order):
    disk, _ = run_code(machine, root, "[Path(name).touch() for name in 'abc']; os.rename('a', 'd')")
    found = {"".join(sorted(tree)) for tree in outcomes(disk, order)}
    in_order = {"", "a", "ab", "abc", "bcd"}
    assert found == in_order if order is not Order.ANY else found > in_order
    assert not any("a" in names and "d" in names for names in found), "a rename is one change"


def test_the_order_of_two_directories(machine, root):
    code = "os.mkdir('p'); os.mkdir('q');" + SYNC_NAMES + "Path('p/1').touch(); Path('q/2').touch()"
    disk, _ = run_code(machine, root, code)
    assert not any("q/2" in tree and "p/1" not in tree for tree in outcomes(disk, Order.ORDERED))
    assert any("q/2" in tree and "p/1" not in tree for tree in outcomes(disk, Order.PREFIX))


def test_bytes_written_over_others_are_old_or_new_by_sectors(machine, root):
    code = WRITES + SYNC_NAMES + "os.fsync(fd); os.pwrite(fd, b'b' * 4096, 0)"
    disk, _ = run_code(machine, root, code)
    for order in Order:
        mixed = 0
        for tree in outcomes(disk, order):
            sectors = [tree["f"][at : at + 512] for at in range(0, 4096, 512)]
            assert all(sector in (b"a" * 512, b"b" * 512) for sector in sectors)
            mixed += len(set(sectors)) == 2
        assert mixed


FAILING_SYNC = """
try:
    os.fsync(fd)
except OSError as error:
    result = error.errno
os.fsync(fd)
"""


def test_a_failed_sync_leaves_nothing_durable(machine, root):
    code = WRITES + SYNC_NAMES + FAILING_SYNC
    failing = plan([Kind.SYNC], 1, Action.FAIL, errno.EIO)
    disk, ended = run_code(machine, root, code, failing)
    assert ended.answer["result"] == errno.EIO
    assert b"" in [tree["f"] for tree in outcomes(disk, Order.ANY)]
    disk, _ = run_code(machine, root, "Path('f').unlink();" + code)
    assert {tree["f"] for tree in outcomes(disk, Order.ANY) if "f" in tree} == {b"a" * 6000}


def test_a_seed_gives_the_same_crash(machine, root):
    disk, _ = run_code(machine, root, ALL_CALLS)
    for order in Order:
        assert outcomes(disk, order, 20) == outcomes(disk, order, 20)
    assert len({repr(tree) for tree in outcomes(disk, Order.ANY)}) > 20


STEPS = """
fd = os.open("f", os.O_RDWR | os.O_CREAT)
result = []
for n in range(4):
    try:
        result.append(os.pwrite(fd, b"x" * 10, 10 * n))
    except OSError as error:
        result.append(-error.errno)
"""


@pytest.mark.parametrize(
    ("how", "done"),
    [
        (plan([Kind.WRITE], 2, Action.FAIL, errno.ENOSPC), [10, -errno.ENOSPC, 10, 10]),
        (
            plan([Kind.WRITE], 2, Action.FAIL, errno.EIO, onwards=True),
            [10, -errno.EIO, -errno.EIO, -errno.EIO],
        ),
        (plan([Kind.WRITE], 2, Action.SHORT, errno.ENOSPC), [10, 5, -errno.ENOSPC, 10]),
        (plan(CALLS, 3, Action.FAIL, errno.ENOSPC), [10, -errno.ENOSPC, 10, 10]),
        (plan([Kind.SYNC], 1, Action.FAIL, errno.EIO), [10, 10, 10, 10]),
    ],
)
def test_errors_come_where_they_are_wanted(machine, root, how, done):
    disk, ended = run_code(machine, root, STEPS, how)
    assert ended.answer["result"] == done
    assert disk.current() == tree_of(root)


@pytest.mark.parametrize(
    ("action", "size"), [(Action.KILL_BEFORE, 10), (Action.KILL_AFTER, 20), (Action.KILL_TORN, 15)]
)
def test_kills_come_where_they_are_wanted(machine, root, action, size):
    disk, ended = run_code(machine, root, STEPS, plan([Kind.WRITE], 2, action))
    assert ended.code == -signal.SIGKILL
    assert disk.current() == tree_of(root) == {"f": b"x" * size}


def test_what_is_not_modelled_is_refused(machine, root):
    for code in ("os.symlink('a', 'b')", "os.open('f', os.O_WRONLY | os.O_CREAT | os.O_APPEND)"):
        _, ended = run_code(machine, root, code)
        assert ended.code == -signal.SIGABRT


def test_a_program_is_watched_from_its_start_by_its_environment(machine, root):
    """As a whole server would be."""
    disk = Disk(root)
    journal = root.with_name("journal")
    numbers = " ".join(map(str, plan([Kind.MKDIR], 2, Action.FAIL, errno.ENOSPC)))
    program = subprocess.run(
        ["mkdir", root / "a", root / "b", root / "c"],
        env={**machine.environment, "DISK_ROOT": root, "DISK_JOURNAL": journal, "DISK_PLAN": numbers},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.returncode != 0 and os.strerror(errno.ENOSPC) in program.stderr
    for event in read_journal(journal):
        disk.apply(event)
    assert disk.current() == tree_of(root) == {"a": None, "c": None}
