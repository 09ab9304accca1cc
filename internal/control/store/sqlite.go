package store

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// sqliteReaders is how many queries run at a time.
	sqliteReaders = 4
	// sqliteBusy is how long a statement waits for another process, in milliseconds.
	sqliteBusy = 5000
)

var sqliteEngine = engine{
	dialect: goose.DialectSQLite3,
	isFull: func(err error) bool {
		var known *sqlite.Error
		return errors.As(err, &known) && known.Code() == sqlite3.SQLITE_FULL
	},
	isDamaged: func(err error) bool {
		var known *sqlite.Error
		// The low byte is what the code is one of.
		return errors.As(err, &known) && (known.Code()&0xff == sqlite3.SQLITE_NOTADB || known.Code()&0xff == sqlite3.SQLITE_CORRUPT)
	},
	hasLabel: func(key, value int) string {
		return fmt.Sprintf("EXISTS (SELECT 1 FROM json_each(metadata) AS label WHERE label.key = $%d AND label.value = $%d)", key, value)
	},
}

func openSQLite(path string) (*DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// SQLite would make the file readable for everybody; its log files take over the
	// file's mode.
	f, err := os.OpenFile(abs, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	pragmas := url.Values{"_pragma": {
		fmt.Sprintf("busy_timeout(%d)", sqliteBusy),
		"journal_mode(WAL)",
		// With the log, NORMAL loses no committed change when a process dies, and the
		// database stays whole when the machine does.
		"synchronous(NORMAL)",
		"foreign_keys(ON)",
	}, "_txlock": {"immediate"}}
	// The path goes into a URI, where ? and % mean something.
	dsn := (&url.URL{Scheme: "file", Path: abs, RawQuery: pragmas.Encode()}).String()
	write, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	write.SetMaxOpenConns(1)
	read, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read.SetMaxOpenConns(sqliteReaders)
	read.SetMaxIdleConns(sqliteReaders)
	return &DB{engine: sqliteEngine, read: read, write: write}, nil
}
