"""What WiredTiger promises about incremental backups, found out by trying: each fact of docs/wiredtiger-facts.md is a
function here that fails when it is no longer so. Run as `facts.py DIRECTORY`; prints one JSON line for each fact."""

import json
import os
import random
import shutil
import subprocess
import sys

import wiredtiger

import wt
from wt import FILE, MB, RANGE

ENOENT = "No such file or directory"
EBUSY = "Device or resource busy"
EINVAL = "Invalid argument"
LOG = "log=(enabled=true,file_max=1M)"


class Home:
    """A database of its own, in a directory that is made empty."""

    def __init__(self, place, config="", keep=False):
        self.place = place
        self.config = config
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
            os.makedirs(place)
        self.open()

    def open(self):
        config = "create,cache_size=200M,checkpoint_sync=false," + self.config
        self.connection = wiredtiger.wiredtiger_open(self.place, config)
        self.session = self.connection.open_session()

    def reopen(self):
        self.connection.close()
        self.open()

    def table(self, name, rows=0, size=2000, extra=""):
        self.session.create("table:" + name, "key_format=q,value_format=u," + extra)
        self.write(name, range(rows), size)

    def write(self, name, rows, size=2000, seed=1):
        noise = random.Random(f"{seed} {name}")
        cursor = self.session.open_cursor("table:" + name)
        for row in rows:
            cursor[row] = noise.randbytes(size)
        cursor.close()

    def checkpoint(self):
        self.session.checkpoint()

    def begin(self, this=None, src=None, granularity=None):
        return self.session.open_cursor("backup:", None, wt.incremental(this, src, granularity))

    def base(self, this, granularity="1M"):
        self.begin(this, None, granularity).close()

    def changed(self, src, this=None, granularity=None):
        """{file: [(offset, length, type)]} of an increment, whose cursor is closed again."""
        cursor = self.begin(this, src, granularity)
        named = wt.ranges(self.session, cursor)
        cursor.close()
        return named

    def size(self, file):
        return os.path.getsize(os.path.join(self.place, file))

    def ids(self):
        return wt.ids(self.connection)


def refused(error, action, *args):
    """What is refused, and how."""
    try:
        action(*args)
    except wiredtiger.WiredTigerError as refusal:
        assert str(refusal) == error, f"refused with {refusal!r} instead of {error!r}"
    else:
        raise AssertionError(f"not refused with {error!r}")


def killed(place, config, steps):
    """Runs the steps in a process that then dies as by kill -9, and opens what it leaves."""
    code = f"import os, facts; home = facts.Home({place!r}, {config!r})\n{steps}\nos.kill(os.getpid(), 9)\n"
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    return Home(place, config, keep=True)


def whole(home, file):
    return [(0, home.size(file), FILE)]


FACTS = []


def fact(function):
    FACTS.append(function)
    return function


@fact
def granules_are_aligned_and_of_one_size(place):
    home = Home(place)
    home.table("t", 3000)
    home.checkpoint()
    home.base("A")
    home.write("t", range(1000, 1010), seed=2)
    home.checkpoint()
    named = home.changed("A", "B")["t.wt"]
    assert named, "something changed"
    assert all((offset % MB, length, kind) == (0, MB, RANGE) for offset, length, kind in named), named
    assert named[-1][0] + MB > home.size("t.wt"), "the last granule reaches over the end of the file"


@fact
def a_block_over_several_granules_names_all_of_them(place):
    home = Home(place)
    home.table("t", 10, 2_500_000, "leaf_value_max=16MB,memory_page_max=64M")
    home.checkpoint()
    home.base("A")
    home.write("t", [3], 2_500_000, seed=2)
    home.checkpoint()
    named = sorted(offset for offset, _, _ in home.changed("A", "B")["t.wt"])
    run = max(sum(1 for at in named if first <= at < first + 4 * MB) for first in named)
    assert run >= 3, f"a block of 2.5 MB lies in at least three granules: {named}"
    assert len(named) <= 5, named


@fact
def the_first_enable_fixes_the_granularity(place):
    home = Home(place)
    home.table("t", 3000)
    home.checkpoint()
    home.base("A", "1M")
    home.write("t", [1], seed=2)
    home.checkpoint()
    assert {length for _, length, _ in home.changed("A", "B", "4M")["t.wt"]} == {MB}
    home.base("C", "4M")
    home.write("t", [1], seed=3)
    home.checkpoint()
    assert {length for _, length, _ in home.changed("C", "D")["t.wt"]} == {MB}
    wt.force_stop(home.session)
    home.base("E", "4M")
    home.write("t", [1], seed=4)
    home.checkpoint()
    assert {length for _, length, _ in home.changed("E", "F")["t.wt"]} == {4 * MB}


@fact
def a_refused_increment_fixes_the_granularity_too(place):
    home = Home(place)
    home.table("t", 3000)
    home.checkpoint()
    refused(ENOENT, home.begin, "B", "A", "4M")
    assert home.ids() == [], "a history without ids has begun"
    home.base("C", "1M")
    home.write("t", [1], seed=2)
    home.checkpoint()
    assert {length for _, length, _ in home.changed("C", "D")["t.wt"]} == {4 * MB}
    # Its default is 16 MB.
    wt.force_stop(home.session)
    refused(ENOENT, home.begin, "B", "A")
    home.base("E", "1M")
    home.write("t", [1], seed=3)
    home.checkpoint()
    assert {length for _, length, _ in home.changed("E", "F")["t.wt"]} == {16 * MB}


@fact
def which_granularities_are_taken(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    for asked in ("1K", "3G"):
        refused(EINVAL, home.begin, "A", None, asked)
        wt.force_stop(home.session)
    for number, (asked, granted) in enumerate([("4K", 4096), ("5000", 5000), ("2G", 2 << 30)]):
        home.base(f"A{number}", asked)
        home.write("t", [1], seed=number + 2)
        home.checkpoint()
        assert {length for _, length, _ in home.changed(f"A{number}")["t.wt"]} == {granted}
        wt.force_stop(home.session)


@fact
def two_ids_are_remembered(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    assert home.ids() is None
    home.base("A")
    home.changed("A", "B")
    assert home.ids() == ["A", "B"]
    home.changed("B", "C")
    assert home.ids() == ["C", "B"]
    refused(ENOENT, home.begin, "D", "A")
    assert home.ids() == ["C", "B"], "what is refused takes no id"
    home.changed("C")
    assert home.ids() == ["C", "B"], "an increment without an id of its own forgets none"


@fact
def a_base_forgets_one_id_and_keeps_the_other(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    home.base("A")
    home.changed("A", "B")
    home.base("C")
    assert home.ids() == ["C", "B"]


@fact
def an_increment_that_is_given_up_keeps_its_id(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    home.base("A")
    home.changed("A", "B0")
    refused(EINVAL, home.begin, "B0", "A")
    refused(EINVAL, home.begin, "A", "A")
    for again in ("B1", "B2"):
        home.changed("A", again)
        assert home.ids() == ["A", again], "the source stays, the id that was given up goes"


@fact
def names_of_ids(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    for bad in ("2026-11-21T17:30:06Z", "a b", "a:b", '"a:b"'):
        refused(EINVAL, home.begin, bad)
    for good in ("20261121T173006Z.1", '"a/b"', "x" * 300):
        home.begin(good).close()


@fact
def an_unchanged_file_answers_nothing(place):
    home = Home(place)
    home.table("t", 1000)
    home.checkpoint()
    home.base("A")
    home.checkpoint()
    home.changed("A", "B")
    assert home.changed("B", "C")["t.wt"] == []


@fact
def files_of_wiredtiger_itself_are_always_whole(place):
    home = Home(place, LOG)
    home.table("t", 1000)
    home.checkpoint()
    home.base("A")
    home.changed("A", "B")
    named = home.changed("B", "C")
    own = {file: found for file, found in named.items() if file != "t.wt"}
    logs = [file for file in own if file.startswith("WiredTigerLog.")]
    assert set(own) - set(logs) == {"WiredTiger", "WiredTiger.backup", "WiredTiger.basecfg", "WiredTigerHS.wt"}
    assert logs, own
    for file, found in own.items():
        assert [(offset, kind) for offset, _, kind in found] == [(0, FILE)], (file, found)


@fact
def a_new_table_answers_ranges_or_nothing(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    home.base("A")
    home.table("unwritten", 1000)
    assert home.changed("A", "B")["unwritten.wt"] == [], "no checkpoint yet: a header of 4096 bytes, unnamed"
    assert home.size("unwritten.wt") == 4096
    home.table("big", 2000)
    home.checkpoint()
    named = home.changed("A", "C")
    assert [offset for offset, _, _ in named["big.wt"]] == [0, MB, 2 * MB, 3 * MB], named
    assert [offset for offset, _, _ in named["unwritten.wt"]] == [0, MB], named
    # A table that stays empty has a checkpoint without blocks and is named whole, each time.
    home.table("empty")
    home.checkpoint()
    home.changed("C", "D")
    named = home.changed("D", "E")["empty.wt"]
    assert named == whole(home, "empty.wt"), named


@fact
def a_table_made_anew_under_its_name(place):
    home = Home(place)
    home.table("t", 1000)
    home.checkpoint()
    home.base("A")
    home.session.drop("table:t")
    home.table("t")
    assert home.changed("A", "B")["t.wt"] == [], "no checkpoint yet"
    home.write("t", range(10))
    home.checkpoint()
    named = home.changed("A", "C")["t.wt"]
    assert named == [(0, MB, RANGE)], named


@fact
def dropped_tables_are_not_listed(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    home.base("A")
    home.session.drop("table:t")
    assert "t.wt" not in home.changed("A", "B")


@fact
def ranges_behind_the_end_of_a_file_that_shrank(place):
    home = Home(place)
    home.table("t", 5000)
    home.checkpoint()
    home.base("A")
    home.changed("A", "B")
    cursor = home.session.open_cursor("table:t")
    for row in range(5000):
        if row % 10:
            cursor.set_key(row)
            cursor.remove()
    cursor.close()
    home.checkpoint()
    before = home.size("t.wt")
    for _ in range(3):
        home.session.compact("table:t", "free_space_target=1MB")
    assert home.size("t.wt") < before // 2
    named = home.changed("B", "C")["t.wt"]
    assert any(offset >= home.size("t.wt") for offset, _, _ in named), (named, home.size("t.wt"))


@fact
def a_duplicate_answers_for_the_file_its_cursor_stands_on(place):
    home = Home(place)
    home.table("t", 1000)
    home.checkpoint()
    home.base("A")
    home.write("t", [1], seed=2)
    home.checkpoint()
    cursor = home.begin("B", "A")
    wt.keys(cursor)
    duplicate = home.session.open_cursor(None, cursor, "incremental=(file=t.wt)")
    assert duplicate.next() != 0, "the cursor stands elsewhere, and the change goes unnamed without an error"
    duplicate.close()
    cursor.reset()
    assert wt.ranges(home.session, cursor)["t.wt"] != []
    cursor.close()


@fact
def consolidated_ranges_are_runs_of_granules(place):
    home = Home(place)
    home.table("t", 5000)
    home.checkpoint()
    home.base("A")
    home.write("t", range(2000), seed=2)
    home.checkpoint()
    single = home.changed("A")["t.wt"]
    cursor = home.session.open_cursor("backup:", None, "incremental=(enabled=true,src_id=A,consolidate=true)")
    runs = wt.ranges(home.session, cursor)["t.wt"]
    cursor.close()
    assert len(runs) < len(single)
    assert sum(length for _, length, _ in runs) == len(single) * MB


@fact
def what_an_open_cursor_forbids(place):
    home = Home(place)
    home.table("t", 5000)
    home.checkpoint()
    cursor = home.begin("A", None, "1M")
    other = home.connection.open_session()
    refused(EINVAL, other.open_cursor, "backup:", None, None)
    refused(EINVAL, other.open_cursor, "backup:query_id", None, None)
    refused(EBUSY, other.drop, "table:t")
    refused(EBUSY, other.rename, "table:t", "table:u")
    # Everything else goes on, and what is new is not in the cursor's list.
    other.create("table:new", "key_format=q,value_format=u")
    inside = other.open_cursor("table:t")
    for row in range(0, 5000, 2):
        inside.set_key(row)
        inside.remove()
    inside.close()
    before = home.size("t.wt")
    other.checkpoint("force=true")
    other.compact("table:t", "free_space_target=1MB")
    assert home.size("t.wt") >= before, "no file shrinks"
    assert "new.wt" not in wt.keys(cursor)
    cursor.close()


@fact
def what_changes_under_an_open_cursor(place):
    home = Home(place)
    home.table("t", 3000)
    home.checkpoint()
    for seed in range(2, 5):
        home.write("t", range(0, 3000, seed), seed=seed)
        home.checkpoint()
    path = os.path.join(place, "t.wt")
    cursor = home.begin("A", None, "1M")
    with open(path, "rb") as file:
        before = file.read()
    other = home.connection.open_session()
    inside = other.open_cursor("table:t")
    for row in range(6000):
        inside[row] = bytes(2000)
        if row % 2000 == 0:
            other.checkpoint("force=true")
    inside.close()
    other.checkpoint("force=true")
    with open(path, "rb") as file:
        after = file.read()
    assert len(after) > len(before), "it grows"
    assert after[: len(before)] != before, "what is free is written over"
    cursor.close()


@fact
def the_logs_of_an_open_cursor(place):
    home = Home(place, LOG)
    home.table("t", 100)
    home.checkpoint()
    cursor = home.begin("A", None, "1M")
    first = [file for file in wt.keys(cursor) if file.startswith("WiredTigerLog.")]
    home.write("t", range(100, 3000))
    home.session.log_flush("sync=on")
    later = wt.log_files(home.session, cursor)
    assert set(first) < set(later), (first, later)
    refused(EINVAL, two_duplicates, home.session, cursor)
    cursor.close()


def two_duplicates(session, cursor):
    one = session.open_cursor(None, cursor, 'target=("log:")')
    try:
        session.open_cursor(None, cursor, 'target=("log:")')
    finally:
        one.close()


@fact
def forced_stop(place):
    home = Home(place)
    home.table("t", 100)
    home.checkpoint()
    home.base("A")
    cursor = home.session.open_cursor("backup:", None, "incremental=(force_stop=true)")
    refused(EINVAL, cursor.next)
    cursor.close()
    assert home.ids() is None
    refused(ENOENT, home.begin, "B", "A", "1M")
    wt.force_stop(home.session)
    wt.force_stop(home.session)


@fact
def an_id_used_again_after_a_forced_stop_brings_old_granules_back(place):
    home = Home(place)
    home.table("t", 1000)
    home.checkpoint()
    home.base("A", "4K")
    home.write("t", range(0, 100), seed=2)
    home.checkpoint()
    stale = home.changed("A", "B")["t.wt"]
    wt.force_stop(home.session)
    home.base("A", "1M")
    again = home.changed("A", "B")["t.wt"]
    assert stale and again[: len(stale)] == stale, "the old granules, of the old size"
    wt.force_stop(home.session)
    home.base("C", "1M")
    assert home.changed("C")["t.wt"] == [], "under a name of its own nothing comes back"


@fact
def a_clean_restart_keeps_the_history(place):
    home = Home(place)
    home.table("t", 1000)
    home.checkpoint()
    home.base("A")
    home.changed("A", "B")
    home.reopen()
    assert home.ids() == ["A", "B"]
    home.write("t", [1], seed=2)
    home.reopen()
    assert home.changed("B", "C")["t.wt"] != []


START = """
home.table('t', 1000)
home.checkpoint()
home.base('A')
home.write('t', range(10), seed=2)
home.checkpoint()
"""
INCREMENT = START + "home.changed('A', 'B')\n"
OPEN = START + "cursor = home.begin('B', 'A')\n"
LATER = "home.write('t', [1], seed=3)\nhome.checkpoint()\n"


@fact
def after_a_crash(place):
    for config in ("", LOG):
        # Closing a base's cursor makes a checkpoint that holds its id ...
        home = killed(place, config, START)
        assert home.ids() == ["A"], home.ids()
        home.connection.close()
        # ... closing an increment's does not: the next checkpoint does. Until then its source is still known.
        home = killed(place, config, INCREMENT)
        assert home.ids() == ["A"], home.ids()
        home.changed("A", "B")
        home.connection.close()
        home = killed(place, config, INCREMENT + "home.write('t', [1], seed=3); home.checkpoint()")
        assert home.ids() == ["A", "B"], home.ids()
        home.connection.close()
        home = killed(place, config, INCREMENT + "wt.force_stop(home.session)".replace("wt", "facts.wt"))
        assert home.ids() is None
        home.connection.close()


@fact
def after_a_crash_with_a_cursor_open(place):
    # The database goes back to the checkpoint that the cursor pinned (WiredTiger.backup) and rolls forward from there.
    # Ids come from the log alone, and get there with a checkpoint.
    base = START.replace("home.base('A')", "cursor = home.begin('A', None, '1M')")
    for steps, config, expected in [
        (OPEN, "", None),
        (OPEN + LATER, "", None),
        (OPEN, LOG, ["A"]),
        (OPEN + LATER, LOG, ["A", "B"]),
        (base, "", None),
        (base, LOG, ["A"]),
    ]:
        home = killed(place, config, steps)
        assert home.ids() == expected, (steps, config, home.ids())
        home.connection.close()


@fact
def a_restored_copy_remembers_what_the_log_tells(place):
    for config in ("", LOG):
        home = Home(place, config)
        home.table("t", 1000)
        home.checkpoint()
        home.base("A")
        home.changed("A", "B")
        home.write("t", [1], seed=2)
        home.checkpoint()
        cursor = home.begin("C", "B")
        copy = place + "-copy"
        shutil.rmtree(copy, ignore_errors=True)
        os.makedirs(copy)
        for file in set(wt.keys(cursor)) | set(wt.log_files(home.session, cursor) if config else []):
            shutil.copy(os.path.join(place, file), copy)
        cursor.close()
        home.connection.close()
        home = Home(copy, config, keep=True)
        expected = ["A", "B"] if config else None
        assert home.ids() == expected, home.ids()
        home.connection.close()
        shutil.rmtree(copy)


def main():
    failed = False
    for number, function in enumerate(FACTS):
        result = {"fact": function.__name__}
        place = os.path.join(sys.argv[1], str(number))
        try:
            function(place)
        except Exception as error:  # Whatever it is, it is the answer to this fact.
            result["error"] = f"{type(error).__name__}: {error}"
            failed = True
        print(json.dumps(result), flush=True)
        shutil.rmtree(place, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
