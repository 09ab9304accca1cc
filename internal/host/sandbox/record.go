package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
)

// record is what is kept on disk of a sandbox, so that the next process knows of it.
type record struct {
	Sandbox Sandbox      `json:"sandbox"`
	Slot    network.Slot `json:"slot"`
	// Token is what the guest expects on every request.
	Token string `json:"token"`
}

// records is the directory of records. Each is replaced in one step: a reader, and a
// process that starts after a crash, sees the old or the new one.
type records struct{ dir string }

const recordSuffix = ".json"

func (r records) path(id string) string { return filepath.Join(r.dir, id+recordSuffix) }

func (r records) write(rec record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return atomicfile.Write(r.path(rec.Sandbox.ID), data, 0o600)
}

func (r records) remove(id string) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ids returns the sandboxes that have a record, and removes half-written ones.
func (r records) ids() ([]string, error) {
	half, err := filepath.Glob(filepath.Join(r.dir, atomicfile.Pattern))
	if err != nil {
		return nil, err
	}
	for _, path := range half {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove half-written record: %w", err)
		}
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), recordSuffix); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
