"""A live WiredTiger database for the tests: tables, writers, checkpoints and backup cursors, driven by one JSON object
a line on stdin, each answered by one on stdout: {"ok": …}, or {"error": …} when WiredTiger refused.

Data is as mongod keeps it: tables without logging whose rows have commit timestamps, of which a checkpoint holds what
is stable, and one logged table, `oplog`, that a restart rolls forward. What a table holds at the checkpoint that a backup
cursor pins is read through WiredTiger's own checkpoint cursors, which are opened together with the backup cursor."""

import hashlib
import itertools
import json
import os
import random
import shutil
import struct
import sys
import threading

import wiredtiger

import wt

OPLOG = "oplog"
WORDS = [bytes(random.Random(word).choices(b"abcdefghijklmnopqrst", k=3 + word % 9)) + b" " for word in range(400)]

# Of commits and timestamps: how far behind the last commit a checkpoint is stable, and how much history is kept.
UNSTABLE, HISTORY = 20, 60

CONNECTION = "create,cache_size=256M,log=(enabled=true,file_max=1M,remove=true),checkpoint_sync=false"


def value(noise, size):
    """Half words, half noise, so that a compressor finds something and not all."""
    text = b"".join(noise.choices(WORDS, k=size // 14))
    return (text + noise.randbytes(size))[:size]


def digest(cursor):
    """Rows, and a sum over all keys and values in order."""
    rows, sums = 0, hashlib.blake2b(digest_size=16)
    while cursor.next() == 0:
        content = cursor.get_value()
        sums.update(struct.pack("<qI", cursor.get_key(), len(content)))
        sums.update(content)
        rows += 1
    return {"rows": rows, "sum": sums.hexdigest()}


def when_idle(session, action):
    """Dirty pages, and whoever has a table open for a moment, make it busy; a checkpoint cleans up."""
    for attempt in itertools.count():
        try:
            return action()
        except wiredtiger.WiredTigerError as busy:
            if "busy" not in str(busy) or attempt == 50:
                raise
            session.checkpoint()


class Table:
    """A table that writers may write to. The lock keeps them away while it is dropped or opened anew."""

    def __init__(self, name, size):
        self.name, self.size = name, size
        self.uri = "table:" + name
        self.lock = threading.Lock()
        self.next = 0
        self.gone = False


class Database:
    def __init__(self, home, seed, compressor):
        self.home, self.seed, self.compressor = home, seed, compressor
        self.tables = {}
        self.clock = threading.Lock()
        self.checkpoints = threading.Lock()
        self.threads, self.stop = [], threading.Event()
        self.failure = None
        self.commits = 0
        self.backup = self.pinned = None
        self.oplog = 0
        os.makedirs(home, exist_ok=True)
        self.connect()
        try:
            self.session.create("table:probe", f"block_compressor={compressor}")
            self.session.drop("table:probe")
        except wiredtiger.WiredTigerError:
            self.compressor = "none"

    def connect(self):
        self.connection = wiredtiger.wiredtiger_open(self.home, CONNECTION)
        self.session = self.connection.open_session()
        # After a restart commits go on above everything that was ever committed.
        for query in ("get=recovery", "get=stable_timestamp"):
            try:
                self.commits = max(self.commits, int(self.connection.query_timestamp(query), 16))
            except wiredtiger.WiredTigerError:
                pass
        self.commits += 10 * UNSTABLE

    def close(self):
        self.halt()
        self.connection.close()

    # --- Tables ---

    def create(self, name, rows, size):
        config = f"key_format=q,value_format=u,block_compressor={self.compressor}"
        logged = "true" if name == OPLOG else "false"
        self.session.create("table:" + name, f"{config},log=(enabled={logged})")
        table = Table(name, size)
        noise = random.Random(f"{self.seed} {name} {self.commits}")
        self.insert(self.session, noise, table, rows)
        self.tables[name] = table

    def drop(self, name):
        table = self.tables.pop(name)
        with table.lock:
            table.gone = True
            with self.checkpoints:
                when_idle(self.session, lambda: self.session.drop(table.uri))

    def commit(self, session, write):
        """Commits in the order of timestamps: no checkpoint can see a later one without an earlier one."""
        with self.clock:
            stamp = f"commit_timestamp={self.commits + 1:x}"
            session.begin_transaction()
            try:
                write()
            except BaseException:
                session.rollback_transaction()
                raise
            session.commit_transaction(stamp)
            self.commits += 1

    def insert(self, session, noise, table, rows, at_once=50):
        cursor = session.open_cursor(table.uri)
        for first in range(table.next, table.next + rows, at_once):
            batch = [(row, value(noise, table.size)) for row in range(first, min(first + at_once, table.next + rows))]

            def write():
                for row, content in batch:
                    cursor[row] = content

            self.commit(session, write)
        cursor.close()
        table.next += rows

    def update(self, session, noise, table, rows):
        """Rows here and there; the others stay as they are."""
        cursor = session.open_cursor(table.uri)

        def write():
            for row in rows:
                cursor[row] = value(noise, table.size)

        self.commit(session, write)
        cursor.close()

    def remove(self, session, table, rows):
        cursor = session.open_cursor(table.uri)
        rows = list(rows)
        for first in range(0, len(rows), 500):

            def write():
                for row in rows[first : first + 500]:
                    cursor.set_key(row)
                    cursor.remove()

            self.commit(session, write)
        cursor.close()

    def note(self, session):
        """One more entry of the logged table."""
        with self.tables[OPLOG].lock:
            cursor = session.open_cursor("table:" + OPLOG)
            cursor[self.oplog] = value(random.Random(self.oplog), 200 + self.oplog % 300)
            cursor.close()
            self.oplog += 1

    # --- Writers and checkpoints ---

    def start(self, writers):
        self.stop.clear()
        for number in range(writers):
            self.threads.append(threading.Thread(target=self.guarded, args=(self.writes, number)))
        self.threads.append(threading.Thread(target=self.guarded, args=(self.makes_checkpoints, writers)))
        for thread in self.threads:
            thread.start()

    def halt(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.threads.clear()
        if self.failure:
            raise self.failure

    def guarded(self, work, number):
        try:
            session = self.connection.open_session()
            work(session, random.Random(f"{self.seed} {number} {self.commits}"))
            session.close()
        except BaseException as failure:  # Is told by the next command.
            self.failure = failure

    def writes(self, session, noise):
        # Each writer keeps to a part of every table, so that most of the large ones stays as it is.
        begin = noise.random()
        # The pace leaves the machine some time for the other side; nothing waits for it.
        while not self.stop.wait(0.01):
            table = noise.choice([table for table in list(self.tables.values()) if table.name != OPLOG])
            with table.lock:
                if table.gone:
                    continue
                part = max(20, table.next // 50)
                first = int(begin * max(0, table.next - part))
                rows = [first + noise.randrange(part) for _ in range(3)]
                what = noise.random()
                if what < 0.55 and table.next:
                    self.update(session, noise, table, rows)
                elif what < 0.9 and table.next:
                    self.update(session, noise, table, range(rows[0], rows[0] + 5))
                elif what < 0.97:
                    self.insert(session, noise, table, 3)
                elif table.next:
                    self.remove(session, table, rows[:1])
            self.note(session)

    def makes_checkpoints(self, session, noise):
        while not self.stop.wait(noise.uniform(0.05, 0.4)):
            self.checkpoint(session)

    def checkpoint(self, session):
        with self.checkpoints:
            with self.clock:
                stable, oldest = self.commits - UNSTABLE, self.commits - HISTORY
                self.connection.set_timestamp(f"stable_timestamp={stable:x}")
                if oldest > 0:
                    self.connection.set_timestamp(f"oldest_timestamp={oldest:x}")
            session.checkpoint("use_timestamp=true")

    # --- Backups ---

    def begin(self, this, src, granularity):
        """Opens the backup cursor, and beside it a cursor on each table at the same checkpoint: no other checkpoint can
        come in between."""
        with self.checkpoints:
            self.backup = self.session.open_cursor("backup:", None, wt.incremental(this, src, granularity))
            self.pinned = {}
            pin = self.connection.open_session()
            names = []
            while self.backup.next() == 0:
                names.append(self.backup.get_key())
            self.backup.reset()
            for name in names:
                if name.endswith(".wt") and not name.startswith("WiredTiger"):
                    self.pinned[name[:-3]] = self.at_checkpoint(pin, name[:-3])
        if src is None:
            named = {name: None for name in names}
        else:
            named = wt.ranges(self.session, self.backup)
        files = {}
        for name, ranges in named.items():
            if not name.startswith("WiredTigerLog."):
                whole = ranges is None or any(kind == wt.FILE for _, _, kind in ranges)
                files[name] = {
                    "size": os.path.getsize(os.path.join(self.home, name)),
                    "ranges": None if whole else [[at, length] for at, length, _ in ranges],
                }
        return {"files": files}

    def at_checkpoint(self, session, name):
        """A cursor on a table at the last checkpoint; None if it has none yet."""
        try:
            return session.open_cursor("table:" + name, None, "checkpoint=WiredTigerCheckpoint")
        except wiredtiger.WiredTigerError:
            return None

    def contents(self):
        """What each table holds at the pinned checkpoint. The logged table goes on to where the log ends."""
        nothing = {"rows": 0, "sum": hashlib.blake2b(digest_size=16).hexdigest()}
        return {
            name: digest(cursor) if cursor else nothing for name, cursor in self.pinned.items() if name != OPLOG
        }

    def logs(self, to):
        """Copies the log as it is now, and tells which entries of the logged table are in it for certain."""
        with self.tables[OPLOG].lock:
            certain = self.oplog
            self.session.log_flush("sync=on")
        # The cursor's own list is not asked for it: it ends at the pin.
        names = wt.log_files(self.session, self.backup)
        for name in names:
            shutil.copyfile(os.path.join(self.home, name), os.path.join(to, name))
        with self.tables[OPLOG].lock:
            return {"files": names, "oplog": [certain, self.oplog]}

    def copy(self, names, to):
        for name in names:
            shutil.copyfile(os.path.join(self.home, name), os.path.join(to, name))

    def end(self):
        for cursor in self.pinned.values():
            if cursor:
                cursor.close()
        self.pinned = None
        with self.checkpoints:
            self.backup.close()
        self.backup = None


def inspect(home):
    """Opens a restored database, verifies every table and reads it."""
    connection = wiredtiger.wiredtiger_open(home, CONNECTION)
    session = connection.open_session()
    metadata = session.open_cursor("metadata:")
    names = sorted(key[len("table:") :] for key in wt.keys(metadata) if key.startswith("table:"))
    metadata.close()
    tables = {}
    for name in names:
        when_idle(session, lambda: session.verify("table:" + name))
        cursor = session.open_cursor("table:" + name)
        tables[name] = digest(cursor)
        cursor.close()
    oplog = None
    if OPLOG in tables:
        del tables[OPLOG]
        cursor = session.open_cursor("table:" + OPLOG)
        oplog = wt.keys(cursor)
        cursor.close()
        assert oplog == list(range(len(oplog))), "the logged table has gaps"
    history = session.open_cursor("file:WiredTigerHS.wt", None, "checkpoint=WiredTigerCheckpoint")
    rows = sum(1 for _ in iter(history.next, wiredtiger.WT_NOTFOUND))
    history.close()
    found = wt.ids(connection)
    connection.close()
    return {"tables": tables, "oplog": len(oplog or []), "history": rows, "ids": found}


class Driver:
    def __init__(self):
        self.database = None

    def open(self, home, seed, compressor):
        self.database = Database(home, seed, compressor)
        return self.database.compressor

    def adopt(self, sizes):
        """The tables of a database that another process made and left; sizes of rows, where they are known."""
        database = self.database
        metadata = database.session.open_cursor("metadata:")
        names = [key[len("table:") :] for key in wt.keys(metadata) if key.startswith("table:")]
        metadata.close()
        for name in names:
            table = Table(name, sizes.get(name, 500))
            cursor = database.session.open_cursor(table.uri)
            table.next = cursor.get_key() + 1 if cursor.prev() == 0 else 0
            cursor.close()
            database.tables[name] = table
        database.oplog = database.tables[OPLOG].next
        return names

    def create(self, name, rows, size):
        self.database.create(name, rows, size)

    def drop(self, name):
        self.database.drop(name)

    def grow(self, name, rows):
        table = self.database.tables[name]
        with table.lock:
            self.database.insert(self.database.session, random.Random(f"grow {name} {rows}"), table, rows)

    def update(self, name, every):
        table = self.database.tables[name]
        with table.lock:
            noise = random.Random(f"update {name} {every}")
            rows = [noise.randrange(table.next) for _ in range(max(1, table.next // every))]
            self.database.update(self.database.session, noise, table, rows)

    def shrink(self, name, keep):
        """Keeps one row of `keep`, and gives the space back."""
        table, database = self.database.tables[name], self.database
        with table.lock:
            database.remove(database.session, table, (row for row in range(table.next) if row % keep))
        for _ in range(2):
            # What was removed has to be older than the oldest history that is kept.
            for _ in range(HISTORY + UNSTABLE):
                database.commit(database.session, lambda: None)
            database.checkpoint(database.session)
            try:
                database.session.compact(table.uri, "free_space_target=1MB,timeout=60")
            except wiredtiger.WiredTigerError as busy:
                # A compaction gives way to checkpoints of others.
                if "busy" not in str(busy):
                    raise
        database.checkpoint(database.session)
        return {"size": os.path.getsize(os.path.join(database.home, name + ".wt"))}

    def checkpoint(self):
        self.database.checkpoint(self.database.session)

    def start(self, writers):
        self.database.start(writers)

    def halt(self):
        self.database.halt()

    def reopen(self):
        self.database.close()
        self.database.connect()
        return {"ids": wt.ids(self.database.connection)}

    def force_stop(self):
        with self.database.checkpoints:
            wt.force_stop(self.database.session)

    def begin(self, this=None, src=None, granularity=None):
        return self.database.begin(this, src, granularity)

    def contents(self):
        return self.database.contents()

    def logs(self, to):
        return self.database.logs(to)

    def copy(self, names, to):
        self.database.copy(names, to)

    def end(self):
        self.database.end()

    def inspect(self, home):
        return inspect(home)

    def close(self):
        self.database.close()
        self.database = None


def main():
    # WiredTiger says some things on stdout, where they would stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    driver = Driver()
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        try:
            answer = {"ok": getattr(driver, name)(**command)}
            if driver.database and driver.database.failure:
                raise driver.database.failure
        except wiredtiger.WiredTigerError as refusal:
            answer = {"error": str(refusal)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
