package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Sandboxes implements sandbox.Store and sandbox.ClockStore.
type Sandboxes struct{ db *DB }

var (
	_ sandbox.Store      = (*Sandboxes)(nil)
	_ sandbox.ClockStore = (*Sandboxes)(nil)
)

const sandboxColumns = `id, status, reason, template, vcpus, memory_mb, disk_mb, timeout_sec, deadline_sec, on_timeout,
	runtime, host_id, host_ip, guest_ip, metadata, created_at, started_at, last_active_at, updated_at,
	deadline_from, paused_at, snapshot_bytes, traffic_token, auto_resume, mask_host`

// Insert implements sandbox.Store.
func (s *Sandboxes) Insert(ctx context.Context, sb sandbox.Sandbox) error {
	labels, err := encodeStrings(sb.Metadata)
	if err != nil {
		return err
	}
	_, err = s.db.exec(ctx, `INSERT INTO sandboxes (`+sandboxColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)`,
		sb.ID, sb.Status, sb.Reason, sb.Template, sb.Resources.VCPUs, sb.Resources.MemoryMB, sb.Resources.DiskMB,
		int64(sb.Timeout/time.Second), int64(sb.Deadline/time.Second), sb.OnTimeout,
		sb.Runtime, sb.HostID, sb.HostIP, sb.GuestIP, labels,
		micros(sb.CreatedAt), micros(sb.StartedAt), micros(sb.LastActiveAt), micros(sb.UpdatedAt),
		micros(sb.DeadlineFrom), micros(sb.PausedAt), sb.SnapshotBytes,
		sb.Web.TrafficToken, flag(sb.Web.AutoResume), sb.Web.MaskHost)
	if err != nil {
		return fmt.Errorf("insert sandbox %s: %w", sb.ID, err)
	}
	return nil
}

// Get implements sandbox.Store.
func (s *Sandboxes) Get(ctx context.Context, id string) (sandbox.Sandbox, error) {
	row := s.db.read.QueryRowContext(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE id = $1", id)
	sb, err := scanSandbox(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return sandbox.Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	if err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("read sandbox %s: %w", id, err)
	}
	return sb, nil
}

// List implements sandbox.Store.
func (s *Sandboxes) List(ctx context.Context, f sandbox.Filter) ([]sandbox.Sandbox, error) {
	query, args := s.listQuery(f)
	rows, err := s.db.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	defer rows.Close()
	var found []sandbox.Sandbox
	for rows.Next() {
		sb, err := scanSandbox(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list sandboxes: %w", err)
		}
		found = append(found, sb)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	return found, nil
}

// listQuery writes the query of List. Whatever a user sent is an argument of it.
func (s *Sandboxes) listQuery(f sandbox.Filter) (string, []any) {
	var where []string
	var args []any
	arg := func(v any) int {
		args = append(args, v)
		return len(args)
	}
	if f.Status != "" {
		where = append(where, fmt.Sprintf("status = $%d", arg(f.Status)))
	}
	if f.Template != "" {
		where = append(where, fmt.Sprintf("template = $%d", arg(f.Template)))
	}
	for key, value := range f.Metadata {
		where = append(where, s.db.engine.hasLabel(arg(key), arg(value)))
	}
	if f.Timed {
		where = append(where, "(timeout_sec > 0 OR deadline_sec > 0)")
	}
	if f.After.ID != "" {
		at := arg(micros(f.After.CreatedAt))
		where = append(where, fmt.Sprintf("(created_at < $%d OR created_at = $%d AND id > $%d)", at, at, arg(f.After.ID)))
	}
	query := "SELECT " + sandboxColumns + " FROM sandboxes"
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	query += " ORDER BY created_at DESC, id"
	if f.Limit > 0 {
		query += fmt.Sprintf(" LIMIT $%d", arg(f.Limit))
	}
	return query, args
}

// Save implements sandbox.Store. When a sandbox was last active, and what its deadline
// counts from, is written by others too, and only goes forward.
func (s *Sandboxes) Save(ctx context.Context, sb sandbox.Sandbox, from ...sandbox.Status) (bool, error) {
	active, deadlineFrom := micros(sb.LastActiveAt), micros(sb.DeadlineFrom)
	args := []any{sb.Status, sb.Reason, sb.Resources.VCPUs, sb.Resources.MemoryMB, sb.Resources.DiskMB,
		sb.Runtime, sb.HostIP, sb.GuestIP, micros(sb.StartedAt), active, active, micros(sb.UpdatedAt),
		deadlineFrom, deadlineFrom, micros(sb.PausedAt), sb.SnapshotBytes, sb.ID}
	n, err := s.db.exec(ctx, `UPDATE sandboxes SET status = $1, reason = $2, vcpus = $3, memory_mb = $4, disk_mb = $5,
		runtime = $6, host_ip = $7, guest_ip = $8, started_at = $9,
		last_active_at = CASE WHEN last_active_at < $10 THEN $11 ELSE last_active_at END, updated_at = $12,
		deadline_from = CASE WHEN deadline_from < $13 THEN $14 ELSE deadline_from END,
		paused_at = $15, snapshot_bytes = $16 WHERE id = $17 AND `+statusIn(from, &args), args...)
	if err != nil {
		return false, fmt.Errorf("write sandbox %s: %w", sb.ID, err)
	}
	return n > 0, nil
}

// SetClocks implements sandbox.ClockStore.
func (s *Sandboxes) SetClocks(ctx context.Context, id string, t sandbox.Timeouts, at time.Time, from ...sandbox.Status) (bool, error) {
	var args []any
	var changes []string
	set := func(column string, v any) {
		args = append(args, v)
		changes = append(changes, fmt.Sprintf("%s = $%d", column, len(args)))
	}
	set("updated_at", micros(at))
	if t.Timeout != nil {
		set("timeout_sec", int64(*t.Timeout/time.Second))
	}
	if t.Deadline != nil {
		set("deadline_sec", int64(*t.Deadline/time.Second))
		set("deadline_from", micros(at))
	}
	if t.OnTimeout != "" {
		set("on_timeout", t.OnTimeout)
	}
	args = append(args, id)
	where := fmt.Sprintf("id = $%d", len(args))
	n, err := s.db.exec(ctx, "UPDATE sandboxes SET "+strings.Join(changes, ", ")+" WHERE "+where+" AND "+statusIn(from, &args), args...)
	if err != nil {
		return false, fmt.Errorf("set the clocks of sandbox %s: %w", id, err)
	}
	return n > 0, nil
}

// SetStatus implements sandbox.Store.
func (s *Sandboxes) SetStatus(ctx context.Context, id string, to sandbox.Status, reason string, at time.Time, from ...sandbox.Status) (bool, error) {
	args := []any{to, reason, micros(at), id}
	n, err := s.db.exec(ctx, "UPDATE sandboxes SET status = $1, reason = $2, updated_at = $3 WHERE id = $4 AND "+statusIn(from, &args), args...)
	if err != nil {
		return false, fmt.Errorf("set sandbox %s to %s: %w", id, to, err)
	}
	return n > 0, nil
}

// Expire implements sandbox.Store. The time of the last change is what a row's version is:
// all that writes one sets it, but for Touch.
func (s *Sandboxes) Expire(ctx context.Context, read sandbox.Sandbox, to sandbox.Status, reason string, at time.Time) (bool, error) {
	n, err := s.db.exec(ctx, `UPDATE sandboxes SET status = $1, reason = $2, updated_at = $3
		WHERE id = $4 AND status = $5 AND updated_at = $6`,
		to, reason, micros(at), read.ID, sandbox.Running, micros(read.UpdatedAt))
	if err != nil {
		return false, fmt.Errorf("set sandbox %s to %s: %w", read.ID, to, err)
	}
	return n > 0, nil
}

// statusIn is the condition that the status is one of from, whose values it appends to
// args.
func statusIn(from []sandbox.Status, args *[]any) string {
	places := make([]string, len(from))
	for i, st := range from {
		*args = append(*args, st)
		places[i] = fmt.Sprintf("$%d", len(*args))
	}
	return "status IN (" + strings.Join(places, ", ") + ")"
}

// Delete implements sandbox.Store.
func (s *Sandboxes) Delete(ctx context.Context, id string) (bool, error) {
	n, err := s.db.exec(ctx, "DELETE FROM sandboxes WHERE id = $1", id)
	if err != nil {
		return false, fmt.Errorf("delete sandbox %s: %w", id, err)
	}
	return n > 0, nil
}

// Touch implements sandbox.ClockStore. Times only go forward: another process may know of
// later activity.
func (s *Sandboxes) Touch(ctx context.Context, active map[string]time.Time) (err error) {
	tx, err := s.db.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("write activity: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write activity: %w", errors.Join(err, tx.Rollback()))
		}
	}()
	ids := make([]string, 0, len(active))
	for id := range active {
		ids = append(ids, id)
	}
	slices.Sort(ids) // one order for all writers, so that none waits for another in a circle
	for _, id := range ids {
		at := micros(active[id])
		if _, err := tx.ExecContext(ctx, "UPDATE sandboxes SET last_active_at = $1 WHERE id = $2 AND last_active_at < $3", at, id, at); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func scanSandbox(scan func(...any) error) (sandbox.Sandbox, error) {
	var sb sandbox.Sandbox
	var labels string
	var timeout, deadline, created, started, active, updated, from, paused, autoResume int64
	err := scan(&sb.ID, &sb.Status, &sb.Reason, &sb.Template,
		&sb.Resources.VCPUs, &sb.Resources.MemoryMB, &sb.Resources.DiskMB, &timeout, &deadline, &sb.OnTimeout,
		&sb.Runtime, &sb.HostID, &sb.HostIP, &sb.GuestIP, &labels, &created, &started, &active, &updated,
		&from, &paused, &sb.SnapshotBytes, &sb.Web.TrafficToken, &autoResume, &sb.Web.MaskHost)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	if err := json.Unmarshal([]byte(labels), &sb.Metadata); err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("metadata of sandbox %s is damaged: %w", sb.ID, err)
	}
	sb.Timeout, sb.Deadline = time.Duration(timeout)*time.Second, time.Duration(deadline)*time.Second
	sb.CreatedAt, sb.StartedAt = fromMicros(created), fromMicros(started)
	sb.LastActiveAt, sb.UpdatedAt = fromMicros(active), fromMicros(updated)
	sb.DeadlineFrom, sb.PausedAt = fromMicros(from), fromMicros(paused)
	sb.Web.AutoResume = autoResume != 0
	return sb, nil
}

// flag is how a truth is kept: not all databases have a type for it.
func flag(v bool) int64 {
	if v {
		return 1
	}
	return 0
}

// encodeStrings writes a map as a JSON object, also one that is nil.
func encodeStrings(m map[string]string) (string, error) {
	if m == nil {
		m = map[string]string{}
	}
	raw, err := json.Marshal(m)
	return string(raw), err
}
