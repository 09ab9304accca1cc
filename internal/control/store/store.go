// Package store keeps what must last in a database: SQLite in a file, with room for a
// second engine. It implements the stores that the control floor's services declare,
// with their types; SQL stops here, and nothing here decides what may be done.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// engine is what differs between databases. Statements use $1 placeholders, which all of
// them take.
type engine struct {
	dialect goose.Dialect
	// hasLabel is a condition on a sandbox's metadata: that the key in placeholder $key
	// has the value in placeholder $value.
	hasLabel func(key, value int) string
	// isFull reports whether a statement failed for want of space.
	isFull func(error) bool
	// isDamaged reports whether a statement failed since the database is none, or is broken.
	isDamaged func(error) bool
}

// DB is an open database. It is safe for concurrent use; Close it when done.
type DB struct {
	engine engine
	// read and write are one pool or two: SQLite has one writer at a time, and a queue of
	// our own is fair and fast where its busy handler is neither.
	read, write *sql.DB
}

// damagedAdvice is what to do about a database that cannot be read, with its path thrice.
const damagedAdvice = "the database %s is damaged, or is no database: move it away, with %s-wal and %s-shm if they are there, " +
	"and put a copy of yours in its place, or start without one: the sandboxes and snapshots that the host has are found again, " +
	"while API keys, labels, names and time limits are lost"

// Open opens the database that url names and brings its tables up to date. The one kind
// of url is sqlite:PATH; the file is made when it does not exist.
func Open(ctx context.Context, url string) (*DB, error) {
	kind, rest, _ := strings.Cut(url, ":")
	var db *DB
	var err error
	switch {
	case kind == "sqlite" && rest != "":
		db, err = openSQLite(rest)
	default:
		return nil, fault.New(fault.InvalidRequest, "database %q is not known; write sqlite:PATH", url)
	}
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", rest, err)
	}
	if err := db.migrate(ctx); err != nil {
		if db.engine.isDamaged(err) {
			err = fault.Wrap(err, fault.Internal, damagedAdvice, rest, rest, rest)
		}
		return nil, errors.Join(fmt.Errorf("bring database %s up to date: %w", rest, err), db.Close())
	}
	return db, nil
}

func (db *DB) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(db.engine.dialect, db.write, files)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Close closes the database.
func (db *DB) Close() error {
	if db.read == db.write {
		return db.write.Close()
	}
	return errors.Join(db.read.Close(), db.write.Close())
}

// Ping reports whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	var one int
	if err := db.read.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		return fault.Wrap(err, fault.HostUnavailable, "the database does not answer")
	}
	return nil
}

// Sandboxes returns the store of sandboxes.
func (db *DB) Sandboxes() *Sandboxes { return &Sandboxes{db} }

// Snapshots returns the store of snapshots.
func (db *DB) Snapshots() *Snapshots { return &Snapshots{db} }

// Keys returns the store of API keys.
func (db *DB) Keys() *Keys { return &Keys{db} }

// exec runs a statement that writes and returns how many rows it changed.
func (db *DB) exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := db.write.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, db.explained(err)
	}
	return res.RowsAffected()
}

// explained is the error of a write, in words for a person when there are some.
func (db *DB) explained(err error) error {
	if db.engine.isFull(err) {
		return fault.Wrap(err, fault.NoSpace, "the server's disk is full; delete sandboxes or make room on it")
	}
	return err
}

// micros and fromMicros are how times are kept: microseconds since 1970, 0 for never.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
