package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
)

// record is what is kept on disk of a sandbox, so that the next process knows of it.
type record struct {
	Sandbox Sandbox `json:"sandbox"`
	Origin  origin  `json:"origin"`
	// Snapshot, Draft, Fork and Untaken are as in state.
	Snapshot string `json:"snapshot,omitempty"`
	Draft    string `json:"draft,omitempty"`
	Fork     string `json:"fork,omitempty"`
	Untaken  Status `json:"untaken,omitempty"`
	// Told is as in state.
	Told time.Time `json:"told,omitzero"`
	// Run is nil while the sandbox does not run.
	Run *runRecord `json:"run,omitempty"`
	// Slot is the one that it had last, which it would like to have again: connections that
	// are still open lead there.
	Slot network.Slot `json:"slot"`
}

// runRecord says where a run is to be found.
type runRecord struct {
	ID   string       `json:"id"`
	Slot network.Slot `json:"slot"`
}

func (st *state) record() record {
	rec := record{
		Sandbox: st.sandbox, Origin: st.origin, Snapshot: st.snapshot, Draft: st.draft, Fork: st.fork, Slot: st.slot, Untaken: st.untaken,
		Told: st.told,
	}
	if st.run != nil {
		rec.Run = &runRecord{ID: st.run.id, Slot: st.run.slot}
	}
	return rec
}

// records is the directory of records. Each is replaced in one step: a reader, and a
// process that starts after a crash, sees the old or the new one.
type records struct {
	dir string
	// quick and durable are the two ways of package atomicfile.
	quick, durable writer
}

// writer replaces a file in one step.
type writer func(path string, data []byte, mode fs.FileMode) error

func newRecords(dir string) records {
	return records{dir: dir, quick: atomicfile.Write, durable: atomicfile.WriteDurable}
}

const (
	recordSuffix = ".json"
	// recordMode is for root alone: a record holds the guest's token.
	recordMode = 0o600
)

func (r records) path(id string) string { return filepath.Join(r.dir, id+recordSuffix) }

// write replaces a record, quickly or durably.
func (r records) write(rec record, how writer) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return how(r.path(rec.Sandbox.ID), data, recordMode)
}

func (r records) remove(id string) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// read returns the record of a sandbox.
func (r records) read(id string) (record, error) {
	data, err := os.ReadFile(r.path(id))
	if err != nil {
		return record{}, err
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, err
	}
	if rec.Sandbox.ID != id {
		return record{}, fmt.Errorf("it is that of %q", rec.Sandbox.ID)
	}
	return rec, nil
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
		if id, ok := strings.CutSuffix(e.Name(), recordSuffix); ok && idPattern.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
