"""The power goes at any moment, also during recovery: what was synced is there, and only what was written.

A log runs on the simulated disk; after each event of its journal the disk may have lost what no sync covers,
in every order that file systems allow (`disk/powerloss.py`). What is left is opened with the real log.
"""

import errno
import random
import shutil

import pytest
from disk.history import History, HoleError, check_directory
from disk.machine import CALLS, CHANGES, Action, plan
from disk.powerloss import Disk, Kind, Order, materialise
from disk.torture import ROUNDS, SEED, case, print_seed
from disk.workload import OPTIONS, random_script


def each_synced(script):
    """Every batch synced before the next one comes."""
    return [step for each in script for step in ([each, ("sync", 0)] if each[0] == "append" else [each])]


ONE_SEGMENT = {**OPTIONS, "segment_max_bytes": 1 << 20}
AHEAD = {**ONE_SEGMENT, "preallocate_bytes": 20_000}
# How the log is used, and with which options: the more is written between syncs, the more can be mixed up.
PROFILES = {
    "a batch in a segment": (each_synced, ONE_SEGMENT),
    "a batch in a preallocated segment": (each_synced, AHEAD),
    "a batch and a roll": (each_synced, OPTIONS),
    "batches in a segment": (list, ONE_SEGMENT),
    "batches and rolls": (list, OPTIONS),
}
CASES = [
    pytest.param(profile, order, id=f"{profile}, {order.value}") for profile in PROFILES for order in Order
]


class Run:
    """A log at work on a disk, with what it has told; several runs may follow each other on one disk."""

    def __init__(self, machine, root, options):
        self.machine = machine
        self.root = root
        self.options = options
        self.disk = Disk(root)
        self.history = History()
        self.attempt = 0

    def go(self, script, how=None, **arguments):
        """Run a script; yields after each event, with disk and history as they were then."""
        ended = self.machine.run(
            "script",
            self.root,
            how or plan(CALLS),
            script=script,
            options=self.options,
            attempt=self.attempt,
            **arguments,
        )
        self.attempt += 1000
        for number, event in enumerate(ended.events):
            self.disk.apply(event)
            self.history.apply(event)
            yield number

    def after_power_loss(self, seed, order, root):
        """Return a run on what is left in `root` when the power goes now."""
        materialise(self.disk.lose_power(seed, order), root)
        after = Run(self.machine, root, self.options)
        after.history = self.history.copy()
        after.history.lose_power()
        after.attempt = self.attempt
        return after

    def check(self):
        """Check the log in the directory, and remove it all."""
        try:
            check_directory(self.root / "log", self.history, self.options)
        finally:
            shutil.rmtree(self.root)


def empty(directory):
    directory.mkdir()
    return directory


def new_run(machine, directory, options):
    return Run(machine, empty(directory), options)


def moments(chance, share):
    """Whether to act at an event, again and again: at about this share of them."""
    while True:
        yield chance.random() < share


@pytest.mark.timeout(100 * ROUNDS + 20)
@pytest.mark.parametrize(("profile", "order"), CASES)
def test_a_loss_of_power(machine, scratch, profile, order):
    print_seed()
    arrange, options = PROFILES[profile]
    cuts = 0
    for number in range(ROUNDS):
        name = f"{SEED} {number} {profile}"
        script = arrange(random_script(name, 40))
        run = new_run(machine, scratch / f"run{number}", options)
        for event in run.go(script):
            with case(f"round {number}, event {event}"):
                run.after_power_loss(f"{name} {event}", order, scratch / "left").check()
            cuts += 1
        shutil.rmtree(run.root)
    assert cuts > 50 * ROUNDS


AGAIN = [("open", 0), ("append", 3), ("append", 9), ("append", 2), ("open", 0), ("append", 5)]


@pytest.mark.timeout(100 * ROUNDS + 20)
@pytest.mark.parametrize(("profile", "order"), CASES)
def test_a_loss_of_power_during_recovery(machine, scratch, profile, order):
    """The power goes, comes back, and goes again while the log is opened and used."""
    print_seed()
    arrange, options = PROFILES[profile]
    cuts = 0
    for number in range(ROUNDS):
        name = f"{SEED} {number} {profile} twice"
        chance = random.Random(name)
        run = new_run(machine, scratch / f"run{number}", options)
        act = moments(chance, 0.07)
        for event in run.go(arrange(random_script(name, 40))):
            if not next(act):
                continue
            second = run.after_power_loss(f"{name} {event}", order, scratch / "second")
            again = moments(chance, 0.5)
            with case(f"round {number}, event {event}"):
                for later in second.go(arrange(AGAIN)):
                    if next(again):
                        with case(f"event {later}"):
                            second.after_power_loss(f"{name} {later}", order, scratch / "left").check()
                        cuts += 1
            shutil.rmtree(second.root)
        shutil.rmtree(run.root)
    assert cuts > 15 * ROUNDS


@pytest.mark.timeout(100 * ROUNDS + 20)
@pytest.mark.parametrize(("profile", "order"), CASES)
def test_a_loss_of_power_after_a_kill(machine, scratch, profile, order):
    """What a killed process has left in the page cache is durable before the next one relies on it."""
    print_seed()
    assert sum(1 for _ in power_loss_after_kill(machine, scratch, profile, order, 8 * ROUNDS)) > 30 * ROUNDS


def power_loss_after_kill(machine, scratch, profile, order, runs):
    arrange, options = PROFILES[profile]
    for number in range(runs):
        name = f"{SEED} {number} {profile} kill"
        chance = random.Random(name)
        run = new_run(machine, scratch / f"run{number}", options)
        action = chance.choice((Action.KILL_BEFORE, Action.KILL_AFTER, Action.KILL_TORN))
        how = plan(CHANGES, chance.randint(1, 120), action)
        for _ in run.go(arrange(random_script(name, 40)), how):
            pass
        act = moments(chance, 0.2)
        for event in run.go(arrange(AGAIN)):
            if next(act):
                with case(f"round {number}, event {event}"):
                    run.after_power_loss(f"{name} {event}", order, scratch / "left").check()
                yield event
        shutil.rmtree(run.root)


def test_a_truncation_vouches_for_what_it_leaves(machine, scratch):
    """It returns with all that is left on disk, also what was sealed before and never synced."""
    run = new_run(machine, scratch / "run", OPTIONS)
    for _ in run.go([("open", 0), ("append", 14), ("append", 14), ("append", 14), ("truncate", 1)]):
        pass
    assert run.history.synced == 28
    for seed in range(20):
        run.after_power_loss(seed, Order.ORDERED, scratch / "left").check()


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_a_cut_is_on_disk_before_the_log_goes_on(machine, scratch, order):
    """Else what was cut off comes back beside what has its offsets by then."""
    run = new_run(machine, scratch / "run", ONE_SEGMENT)
    script = [
        ("open", 0),
        ("append", 3),
        ("append", 3),
        ("sync", 0),
        ("truncate", 3),
        ("append", 3),
        ("sync", 0),
    ]
    for event in run.go(script):
        run.after_power_loss(event, order, scratch / "left").check()
    for seed in range(20):
        run.after_power_loss(seed, order, scratch / "left").check()


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_what_a_truncation_leaves_is_on_disk_before_the_log_goes_on(machine, scratch, order):
    """The new segment's name says that all before it was there, and it is there before the cut is made."""
    run = new_run(machine, scratch / "run", ONE_SEGMENT)
    script = [("open", 0), ("append", 3), ("sync", 0), *[("append", 9)] * 6, ("truncate", 20)]
    for event in run.go(script):
        for seed in range(4):
            run.after_power_loss(f"{event} {seed}", order, scratch / "left").check()


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
@pytest.mark.parametrize(
    ("step", "options"),
    [(("truncate", 20), ONE_SEGMENT), (("retain", 0), OPTIONS)],
    ids=["truncation", "retention"],
)
def test_removing_that_was_killed_is_finished_for_good(machine, scratch, order, step, options):
    """What it has removed, though not durably, does not come back after the next start; nor is more lost."""
    script = [("open", 0), *[("append", 9)] * 6, ("open", 0), step]
    calls = [
        machine.run("script", empty(scratch / name), plan(CHANGES), script=part, options=options).answer[
            "calls"
        ]
        for name, part in (("before", script[:-1]), ("all", script))
    ]
    assert calls[1] > calls[0]
    for at in range(calls[0] + 1, calls[1] + 1):
        run = new_run(machine, scratch / f"run{at}", options)
        for _ in run.go(script, plan(CHANGES, at, Action.KILL_AFTER)):
            pass
        for event in run.go([("open", 0)]):
            for seed in range(16):
                with case(f"call {at}, event {event}, seed {seed}"):
                    run.after_power_loss(f"{at} {event} {seed}", order, scratch / "left").check()


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_a_recovery_makes_no_proof_of_what_it_may_yet_cut_off(machine, scratch, order):
    """An index file says that all before it was on disk; none is written behind damage not judged yet."""
    run = new_run(machine, scratch / "run", OPTIONS)
    for _ in run.go([("open", 0), ("append", 3), ("sync", 0), *[("append", 14)] * 6]):
        pass
    for seed in range(10):
        second = run.after_power_loss(seed, order, scratch / "second")
        for event in second.go([("open", 0)]):
            second.after_power_loss(f"{seed} {event}", order, scratch / "left").check()
        shutil.rmtree(second.root)


@pytest.mark.parametrize("mutant", ["", "no directory sync"])
def test_a_sync_needs_no_index_to_be_one(machine, scratch, mutant):
    """An index is synced with its directory; a sync must not count on one for the names of segments."""
    script = [("open", 0), ("append", 14), ("append", 14), ("append", 14)]
    sound = machine.run("script", empty(scratch / "sound"), plan([Kind.CREATE]), script=script)
    run = new_run(machine, scratch / "run", OPTIONS)
    full = plan([Kind.CREATE], sound.answer["calls"] + 1, Action.FAIL, errno.ENOSPC, onwards=True)
    for _ in run.go([*script, ("sync", 0)], full, mutant=mutant):
        pass
    assert run.history.synced == 42
    assert not list(run.root.glob("log/*.index"))

    def play():
        for seed in range(20):
            run.after_power_loss(seed, Order.PREFIX, scratch / "left").check()

    if mutant:
        with pytest.raises(AssertionError, match="was told to be there"):
            play()
    else:
        play()


def test_a_restart_after_a_failed_sync(machine, scratch):
    """What a failed sync has dropped is in the page cache still, but clean: no sync writes it any more.

    The next process finds it there and must not take it for durable, unless it has written it anew; and what
    was durable before stays so meanwhile.
    """
    run = new_run(machine, scratch / "run", ONE_SEGMENT)
    script = [("open", 0), ("append", 3), ("sync", 0), ("append", 3), ("sync", 0)]
    for _ in run.go(script, failing_second_sync(machine, scratch, script), tolerant=True):
        pass
    assert run.history.synced == 3
    for event in run.go([("open", 0), ("sync", 0)]):
        for seed in range(3):
            run.after_power_loss(f"{event} {seed}", Order.PREFIX, scratch / "left").check()
    for seed in range(20):
        run.after_power_loss(seed, Order.PREFIX, scratch / "left").check()


def failing_second_sync(machine, scratch, script):
    """A plan by which the second sync of a log fails; the script begins with the first."""
    sound = machine.run("script", empty(scratch / "sound"), plan([Kind.SYNC]), script=script[:3])
    return plan([Kind.SYNC], sound.answer["calls"] + 1, Action.FAIL, errno.EIO)


@pytest.mark.parametrize("module", ["liftbridge.log.files", "liftbridge.broker.durable"])
@pytest.mark.parametrize("made", [1, 2, 3])
def test_directories_that_a_killed_process_has_made(machine, scratch, module, made):
    """They exist, but nobody has synced the name of the last; whoever finds them does."""
    root = empty(scratch / "root")
    disk = Disk(root)
    code = f"from {module} import make_directory; make_directory(Path('a/b/c').absolute())"
    for how in (plan([Kind.MKDIR], made, Action.KILL_AFTER), plan(CALLS)):
        for event in machine.run("code", root, how, code=code).events:
            disk.apply(event)
    for seed in range(20):
        assert disk.lose_power(seed, Order.PREFIX) == {"a": None, "a/b": None, "a/b/c": None}


# ---- what the tests would notice ----


@pytest.mark.parametrize("mutant", ["no data sync", "synced before it is"])
def test_a_log_that_syncs_too_little_is_caught(machine, scratch, mutant):
    arrange, options = PROFILES["a batch and a roll"]
    run = new_run(machine, scratch / "run", options)
    with pytest.raises((AssertionError, HoleError)):
        for event in run.go(arrange(random_script(1, 40)), mutant=mutant):
            run.after_power_loss(event, Order.PREFIX, scratch / "left").check()


@pytest.mark.parametrize("mutant", ["", "no sync in recovery"])
def test_a_recovery_that_does_not_sync_is_caught(machine, scratch, mutant):
    """A batch of a killed process is in the page cache alone; who opens the log next makes it durable."""
    run = new_run(machine, scratch / "run", ONE_SEGMENT)
    for _ in run.go([("open", 0), ("append", 3)]):
        pass

    def play():
        for _ in run.go([("open", 0)], mutant=mutant):
            pass
        for seed in range(20):
            run.after_power_loss(seed, Order.PREFIX, scratch / "left").check()

    if mutant:
        with pytest.raises(AssertionError, match="was told to be there"):
            play()
    else:
        play()


@pytest.mark.parametrize("mutant", ["", "second try of a sync"])
def test_a_second_try_of_a_failed_sync_is_caught(machine, scratch, mutant):
    """The kernel may have dropped the pages that it could not write, whatever a later sync says."""
    script = [("open", 0), ("append", 3), ("sync", 0), ("append", 3), ("sync", 0), ("append", 3), ("sync", 0)]
    failing = failing_second_sync(machine, scratch, script)
    run = new_run(machine, scratch / "run", ONE_SEGMENT)

    def play():
        for event in run.go(script, failing, tolerant=True, mutant=mutant):
            run.after_power_loss(event, Order.ANY, scratch / "left").check()

    if mutant:
        with pytest.raises((AssertionError, HoleError)):
            play()
    else:
        play()
        assert run.history.synced == 3
