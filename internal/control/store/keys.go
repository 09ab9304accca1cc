package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/account"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Keys implements account.Store.
type Keys struct{ db *DB }

var _ account.Store = (*Keys)(nil)

// KeyByHash implements account.Store.
func (k *Keys) KeyByHash(ctx context.Context, hash [sha256.Size]byte) (account.Key, error) {
	key := account.Key{}
	var stored string
	var created, used int64
	err := k.db.read.QueryRowContext(ctx,
		"SELECT hash, prefix, name, created_at, last_used_at FROM api_keys WHERE hash = $1", hex.EncodeToString(hash[:]),
	).Scan(&stored, &key.Prefix, &key.Name, &created, &used)
	if errors.Is(err, sql.ErrNoRows) {
		return account.Key{}, fault.New(fault.NotFound, "there is no such API key")
	}
	if err != nil {
		return account.Key{}, fmt.Errorf("read an API key: %w", err)
	}
	if n, err := hex.Decode(key.Hash[:], []byte(stored)); err != nil || n != sha256.Size {
		return account.Key{}, fmt.Errorf("read an API key: its hash is damaged: %w", err)
	}
	key.CreatedAt, key.LastUsedAt = fromMicros(created), fromMicros(used)
	return key, nil
}

// InsertFirstKey implements account.Store. One statement decides and inserts, so that of
// two servers that start at once only one makes a key.
func (k *Keys) InsertFirstKey(ctx context.Context, key account.Key) (bool, error) {
	n, err := k.db.exec(ctx, `INSERT INTO api_keys (hash, prefix, name, created_at, last_used_at)
		SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS (SELECT 1 FROM api_keys)`,
		hex.EncodeToString(key.Hash[:]), key.Prefix, key.Name, micros(key.CreatedAt), micros(key.LastUsedAt))
	if err != nil {
		return false, fmt.Errorf("insert the first API key: %w", err)
	}
	return n == 1, nil
}

// InsertKey implements account.Store.
func (k *Keys) InsertKey(ctx context.Context, key account.Key) error {
	_, err := k.db.exec(ctx, "INSERT INTO api_keys (hash, prefix, name, created_at, last_used_at) VALUES ($1, $2, $3, $4, $5)",
		hex.EncodeToString(key.Hash[:]), key.Prefix, key.Name, micros(key.CreatedAt), micros(key.LastUsedAt))
	if err != nil {
		return fmt.Errorf("insert an API key: %w", err)
	}
	return nil
}

// TouchKey implements account.Store.
func (k *Keys) TouchKey(ctx context.Context, hash [sha256.Size]byte, at time.Time) error {
	if _, err := k.db.exec(ctx, "UPDATE api_keys SET last_used_at = $1 WHERE hash = $2", micros(at), hex.EncodeToString(hash[:])); err != nil {
		return fmt.Errorf("write when an API key was used: %w", err)
	}
	return nil
}
