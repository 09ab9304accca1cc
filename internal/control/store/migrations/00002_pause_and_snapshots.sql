-- +goose Up
ALTER TABLE sandboxes ADD COLUMN deadline_from BIGINT NOT NULL DEFAULT 0; -- 0: created_at
ALTER TABLE sandboxes ADD COLUMN paused_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN snapshot_bytes BIGINT NOT NULL DEFAULT 0;

CREATE TABLE snapshots (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE, -- the id, when it has none of its own
    status       TEXT NOT NULL,
    host_id      TEXT NOT NULL,
    sandbox_id   TEXT NOT NULL, -- what it was made of, which may be gone
    template     TEXT NOT NULL,
    vcpus        BIGINT NOT NULL,
    memory_mb    BIGINT NOT NULL,
    disk_mb      BIGINT NOT NULL,
    default_user TEXT NOT NULL,
    env          TEXT NOT NULL, -- a JSON object of strings
    size_bytes   BIGINT NOT NULL,
    stopped_us   BIGINT NOT NULL,
    created_at   BIGINT NOT NULL
);

-- +goose Down
DROP TABLE snapshots;
ALTER TABLE sandboxes DROP COLUMN snapshot_bytes;
ALTER TABLE sandboxes DROP COLUMN paused_at;
ALTER TABLE sandboxes DROP COLUMN deadline_from;
