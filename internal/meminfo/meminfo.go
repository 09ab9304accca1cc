// Package meminfo reads how much memory a machine has left. It knows nothing else.
package meminfo

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

const (
	path = "/proc/meminfo"
	kib  = 1 << 10
)

var errUnknown = errors.New(path + " does not say how much memory is available")

// Available returns what this machine could give to programs now, in bytes.
func Available() (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return Parse(string(text))
}

// Parse is Available for the text of /proc/meminfo.
func Parse(text string) (uint64, error) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "MemAvailable:")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", errUnknown, err)
		}
		return n * kib, nil
	}
	return 0, errUnknown
}
