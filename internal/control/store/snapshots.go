package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Snapshots implements sandbox.SnapshotStore.
type Snapshots struct{ db *DB }

var _ sandbox.SnapshotStore = (*Snapshots)(nil)

const snapshotColumns = `id, name, status, host_id, sandbox_id, template, vcpus, memory_mb, disk_mb,
	default_user, size_bytes, stopped_us, created_at`

// Insert implements sandbox.SnapshotStore.
func (s *Snapshots) Insert(ctx context.Context, snap sandbox.Snapshot) error {
	n, err := s.db.exec(ctx, `INSERT INTO snapshots (`+snapshotColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (name) DO NOTHING`,
		snap.ID, snap.Name, snap.Status, snap.HostID, snap.SandboxID, snap.Template,
		snap.Resources.VCPUs, snap.Resources.MemoryMB, snap.Resources.DiskMB,
		snap.User, snap.SizeBytes, snap.Stopped.Microseconds(), micros(snap.CreatedAt))
	if err != nil {
		return fmt.Errorf("insert snapshot %s: %w", snap.ID, err)
	}
	if n == 0 {
		return fault.New(fault.Conflict, "there is a snapshot %q already; choose another name, delete it, or overwrite it", snap.Name)
	}
	return nil
}

// List implements sandbox.SnapshotStore.
func (s *Snapshots) List(ctx context.Context) ([]sandbox.Snapshot, error) {
	rows, err := s.db.read.QueryContext(ctx, "SELECT "+snapshotColumns+" FROM snapshots ORDER BY created_at DESC, id")
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	defer rows.Close()
	var found []sandbox.Snapshot
	for rows.Next() {
		snap, err := scanSnapshot(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		found = append(found, snap)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return found, nil
}

// Find implements sandbox.SnapshotStore.
func (s *Snapshots) Find(ctx context.Context, nameOrID string) (sandbox.Snapshot, error) {
	row := s.db.read.QueryRowContext(ctx, "SELECT "+snapshotColumns+" FROM snapshots WHERE (name = $1 OR id = $2) AND status IN ($3, $4, $5)",
		nameOrID, nameOrID, sandbox.SnapshotReady, sandbox.SnapshotMissing, sandbox.SnapshotDamaged)
	snap, err := scanSnapshot(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return sandbox.Snapshot{}, fault.New(fault.NotFound, "there is no snapshot %q", nameOrID)
	}
	if err != nil {
		return sandbox.Snapshot{}, fmt.Errorf("read snapshot %s: %w", nameOrID, err)
	}
	return snap, nil
}

// Promote implements sandbox.SnapshotStore.
func (s *Snapshots) Promote(ctx context.Context, snap sandbox.Snapshot, name string) (ok bool, err error) {
	tx, err := s.db.write.BeginTx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("name snapshot %s: %w", snap.ID, err)
	}
	defer func() {
		if !ok {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	_, err = tx.ExecContext(ctx, "UPDATE snapshots SET status = $1, name = id WHERE name = $2 AND id <> $3",
		sandbox.SnapshotDeleting, name, snap.ID)
	if err != nil {
		return false, fmt.Errorf("name snapshot %s: %w", snap.ID, s.db.explained(err))
	}
	res, err := tx.ExecContext(ctx, `UPDATE snapshots SET name = $1, status = $2, vcpus = $3, memory_mb = $4, disk_mb = $5,
		default_user = $6, size_bytes = $7, stopped_us = $8, created_at = $9 WHERE id = $10 AND status = $11`,
		name, sandbox.SnapshotReady, snap.Resources.VCPUs, snap.Resources.MemoryMB, snap.Resources.DiskMB,
		snap.User, snap.SizeBytes, snap.Stopped.Microseconds(), micros(snap.CreatedAt), snap.ID, sandbox.SnapshotCreating)
	if err != nil {
		return false, fmt.Errorf("name snapshot %s: %w", snap.ID, s.db.explained(err))
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return false, err
	}
	if err := tx.Commit(); err != nil {
		return false, fmt.Errorf("name snapshot %s: %w", snap.ID, s.db.explained(err))
	}
	return true, nil
}

// Retire implements sandbox.SnapshotStore.
func (s *Snapshots) Retire(ctx context.Context, id string) error {
	if _, err := s.db.exec(ctx, "UPDATE snapshots SET status = $1, name = id WHERE id = $2", sandbox.SnapshotDeleting, id); err != nil {
		return fmt.Errorf("retire snapshot %s: %w", id, err)
	}
	return nil
}

// SetStatus implements sandbox.SnapshotStore.
func (s *Snapshots) SetStatus(ctx context.Context, id string, to, from sandbox.SnapshotStatus) error {
	if _, err := s.db.exec(ctx, "UPDATE snapshots SET status = $1 WHERE id = $2 AND status = $3", to, id, from); err != nil {
		return fmt.Errorf("set snapshot %s to %s: %w", id, to, err)
	}
	return nil
}

// Delete implements sandbox.SnapshotStore.
func (s *Snapshots) Delete(ctx context.Context, id string) error {
	if _, err := s.db.exec(ctx, "DELETE FROM snapshots WHERE id = $1", id); err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	return nil
}

func scanSnapshot(scan func(...any) error) (sandbox.Snapshot, error) {
	var snap sandbox.Snapshot
	var stopped, created int64
	err := scan(&snap.ID, &snap.Name, &snap.Status, &snap.HostID, &snap.SandboxID, &snap.Template,
		&snap.Resources.VCPUs, &snap.Resources.MemoryMB, &snap.Resources.DiskMB,
		&snap.User, &snap.SizeBytes, &stopped, &created)
	if err != nil {
		return sandbox.Snapshot{}, err
	}
	snap.Stopped, snap.CreatedAt = time.Duration(stopped)*time.Microsecond, fromMicros(created)
	return snap, nil
}
