package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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

const (
	recordSuffix  = ".json"
	partialSuffix = ".partial"
)

func (r records) path(id string) string { return filepath.Join(r.dir, id+recordSuffix) }

func (r records) write(rec record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	partial := r.path(rec.Sandbox.ID) + partialSuffix
	if err := os.WriteFile(partial, data, 0o600); err != nil {
		return err
	}
	return os.Rename(partial, r.path(rec.Sandbox.ID))
}

func (r records) remove(id string) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ids returns the sandboxes that have a record, and removes half-written ones.
func (r records) ids() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), partialSuffix) {
			if err := os.Remove(filepath.Join(r.dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove half-written record: %w", err)
			}
			continue
		}
		if id, ok := strings.CutSuffix(e.Name(), recordSuffix); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
