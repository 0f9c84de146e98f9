"""What the driver and the facts share: WiredTiger's backup cursors as plain values."""

import wiredtiger

# What a duplicate cursor calls a record: the whole file, or one range of it.
FILE, RANGE = wiredtiger.WT_BACKUP_FILE, wiredtiger.WT_BACKUP_RANGE

MB = 1 << 20


def keys(cursor):
    """All keys of a cursor."""
    found = []
    while cursor.next() == 0:
        found.append(cursor.get_key())
    return found


def ranges(session, cursor):
    """{file: [(offset, length, type)]}: what duplicates of the backup cursor name of each file of its list. A duplicate
    answers from the metadata of the file on which the cursor stands, so it is opened while the cursor stands there."""
    named = {}
    while cursor.next() == 0:
        file = cursor.get_key()
        duplicate = session.open_cursor(None, cursor, f"incremental=(file={file})")
        named[file] = []
        while duplicate.next() == 0:
            named[file].append(tuple(duplicate.get_keys()))
        duplicate.close()
    return named


def log_files(session, cursor):
    """The log files as they are now: what a server's extend cursor answers."""
    duplicate = session.open_cursor(None, cursor, 'target=("log:")')
    found = keys(duplicate)
    duplicate.close()
    return found


def incremental(this=None, src=None, granularity=None):
    """The configuration of a backup cursor that begins or goes on with a history."""
    parts = ["enabled=true"]
    if granularity is not None:
        parts.append(f"granularity={granularity}")
    if src is not None:
        parts.append(f"src_id={src}")
    if this is not None:
        parts.append(f"this_id={this}")
    return f"incremental=({','.join(parts)})"


def force_stop(session):
    """Forgets the history. What it does is done when the cursor closes."""
    session.open_cursor("backup:", None, "incremental=(force_stop=true)").close()


def ids(connection):
    """The ids that are remembered; None when no history is kept at all."""
    session = connection.open_session()
    try:
        cursor = session.open_cursor("backup:query_id")
    except wiredtiger.WiredTigerError:
        return None
    found = keys(cursor)
    session.close()
    return found
