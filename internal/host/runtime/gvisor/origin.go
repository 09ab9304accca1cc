package gvisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// originFile says in a bundle, and in a checkpoint, what the sandbox comes from.
const originFile = "origin.json"

// origin is what must be the very same when a sandbox is restored, and what gVisor does
// not look at.
type origin struct {
	// Program is the hash of the runsc that drives it.
	Program string `json:"program"`
	// Image tells its image from others, also from one that was built anew under its name:
	// all that the guest wrote lies over that one.
	Image string `json:"image"`
}

func readOrigin(dir string) (from origin, err error) {
	path := filepath.Join(dir, originFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return from, err
	}
	if err := json.Unmarshal(data, &from); err != nil {
		return from, fmt.Errorf("read %s: %w", path, err)
	}
	// The hash becomes part of a path.
	if _, err := hex.DecodeString(from.Program); err != nil || len(from.Program) != hex.EncodedLen(sha256.Size) {
		return from, fmt.Errorf("%s names no program", path)
	}
	return from, nil
}

func writeOrigin(dir string, from origin) error {
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, originFile), data, stateMode)
}

// The superblock of an EROFS file system: it has a checksum, counts and a UUID that is made
// anew by every mkfs.erofs (see erofs_fs.h of the Linux kernel).
const (
	superOffset = 1024
	superBytes  = 128
)

// imageSum tells an EROFS image from all others, by its superblock.
func imageSum(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	super := make([]byte, superBytes)
	if _, err := file.ReadAt(super, superOffset); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read image: %w", err)
	}
	sum := sha256.Sum256(super)
	return hex.EncodeToString(sum[:]), nil
}
