-- +goose Up
ALTER TABLE sandboxes ADD COLUMN traffic_token TEXT NOT NULL DEFAULT ''; -- empty: everybody may reach its ports
ALTER TABLE sandboxes ADD COLUMN auto_resume BIGINT NOT NULL DEFAULT 0; -- 0 or 1
ALTER TABLE sandboxes ADD COLUMN mask_host TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN mask_host;
ALTER TABLE sandboxes DROP COLUMN auto_resume;
ALTER TABLE sandboxes DROP COLUMN traffic_token;
