package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockName = "build.lock"

	// lockRetry is how often a waiting builder looks whether the other one is done.
	lockRetry = 200 * time.Millisecond
)

// buildLock is held by the one process that may build in a directory. It goes with the
// last process that has the file open, so a killed builder does not hold it.
type buildLock struct{ file *os.File }

func (l buildLock) release() { _ = l.file.Close() }

// tryLock returns false when another builder has the lock.
func tryLock(dir string) (buildLock, bool, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return buildLock{}, false, fmt.Errorf("open build lock: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return buildLock{file}, true, nil
	}
	_ = file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return buildLock{}, false, nil
	}
	return buildLock{}, false, fmt.Errorf("take build lock: %w", err)
}

// waitLock takes the lock when it is free, and calls waiting once if it is not at once.
func waitLock(ctx context.Context, dir string, waiting func()) (buildLock, error) {
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for first := true; ; first = false {
		lock, ok, err := tryLock(dir)
		if ok || err != nil {
			return lock, err
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			return buildLock{}, fmt.Errorf("wait for another build of the base image: %w", ctx.Err())
		case <-tick.C:
		}
	}
}
