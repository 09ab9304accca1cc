-- What was in it may be secret, and only the host needs it.

-- +goose Up
ALTER TABLE snapshots DROP COLUMN env;

-- +goose Down
ALTER TABLE snapshots ADD COLUMN env TEXT NOT NULL DEFAULT '{}';
