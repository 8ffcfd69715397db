"""Tables and statements of the SQLite event store."""

from passerelle.calendar_time import HOUR_MS

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, event_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_by_time ON events (user_id, timestamp_ms);
CREATE INDEX IF NOT EXISTS events_by_age ON events (timestamp_ms);
CREATE TABLE IF NOT EXISTS identities (user_id TEXT PRIMARY KEY, identity TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasures (user_digest TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hourly (
    hour INTEGER, item_id TEXT, count INTEGER, PRIMARY KEY (hour, item_id)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS events_counted AFTER INSERT ON events BEGIN
    INSERT INTO hourly VALUES (new.timestamp_ms / {HOUR_MS}, new.item_id, 1)
        ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER IF NOT EXISTS events_uncounted AFTER DELETE ON events BEGIN
    UPDATE hourly SET count = count - 1 WHERE hour = old.timestamp_ms / {HOUR_MS} AND item_id = old.item_id;
    DELETE FROM hourly WHERE hour = old.timestamp_ms / {HOUR_MS} AND item_id = old.item_id AND count <= 0;
END;
"""
HAS_ERASURE_ORDER = "SELECT 1 FROM sqlite_master WHERE name = 'erasures_ordered'"
# Files of earlier versions have erasures, but not their order.
ADD_ERASURE_ORDER = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS erasure_order (
    position INTEGER PRIMARY KEY AUTOINCREMENT, user_digest TEXT NOT NULL
);
INSERT INTO erasure_order (user_digest)
    SELECT user_digest FROM erasures WHERE NOT EXISTS (SELECT 1 FROM erasure_order);
CREATE TRIGGER IF NOT EXISTS erasures_ordered AFTER INSERT ON erasures BEGIN
    INSERT INTO erasure_order (user_digest) VALUES (new.user_digest);
END;
COMMIT;
"""
ERASED_AFTER = "SELECT position, user_digest FROM erasure_order WHERE position > ? ORDER BY position LIMIT ?"
ASSIGN_PSEUDONYM = """
INSERT OR IGNORE INTO identities
SELECT ?, ? WHERE coalesce((SELECT times FROM erasures WHERE user_digest = ?), 0) = ?
"""
# One statement reads both at one moment: an erasure after it makes the count of erasures outdated.
PSEUDONYM_AND_ERASURES = """
SELECT
    (SELECT identity FROM identities WHERE user_id = ?),
    coalesce((SELECT times FROM erasures WHERE user_digest = ?), 0)
"""
PRUNE = """
DELETE FROM events WHERE (user_id, event_id) IN (
    SELECT user_id, event_id FROM events WHERE timestamp_ms < ? LIMIT ?
)
"""
NEWEST_EVENTS = """
SELECT event_id, user_id, item_id, event_type, timestamp_ms FROM events
WHERE user_id = ? ORDER BY timestamp_ms DESC, event_id DESC LIMIT ?
"""
