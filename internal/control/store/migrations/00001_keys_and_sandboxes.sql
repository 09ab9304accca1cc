-- Written so that SQLite and Postgres both take it. Times are microseconds since 1970 in
-- UTC, 0 for never; sizes are MiB.

-- +goose Up
CREATE TABLE api_keys (
    hash         TEXT PRIMARY KEY, -- SHA-256 of the key's 40 hexadecimal digits, in hexadecimal
    prefix       TEXT NOT NULL,
    name         TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL
);

CREATE TABLE sandboxes (
    id             TEXT PRIMARY KEY,
    status         TEXT NOT NULL,
    reason         TEXT NOT NULL,
    template       TEXT NOT NULL,
    vcpus          BIGINT NOT NULL,
    memory_mb      BIGINT NOT NULL,
    disk_mb        BIGINT NOT NULL,
    timeout_sec    BIGINT NOT NULL,
    deadline_sec   BIGINT NOT NULL,
    on_timeout     TEXT NOT NULL,
    runtime        TEXT NOT NULL,
    host_id        TEXT NOT NULL,
    host_ip        TEXT NOT NULL,
    guest_ip       TEXT NOT NULL,
    metadata       TEXT NOT NULL, -- a JSON object of strings
    created_at     BIGINT NOT NULL,
    started_at     BIGINT NOT NULL,
    last_active_at BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL
);

CREATE INDEX sandboxes_newest ON sandboxes (created_at DESC, id);
CREATE INDEX sandboxes_by_status ON sandboxes (status);

-- +goose Down
DROP TABLE sandboxes;
DROP TABLE api_keys;
