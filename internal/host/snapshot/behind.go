package snapshot

import (
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// behindEvery is how often a draft is looked at for bytes that are new: some tens of MiB at
// the speed at which memory is written down.
const behindEvery = 10 * time.Millisecond

// SendEarly has what is written to the draft sent to the disk from now on, while more is
// being written, so that little is left for Commit to wait for. It makes nothing durable and
// slows the writing down a little: it is for those who wait for the commit, not for those who
// stand still for the writing alone.
func (d *Draft) SendEarly() {
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() { sendEarly(d.Dir(), stop) })
	former := d.quiet
	d.quiet = sync.OnceFunc(func() {
		close(stop)
		sending.Wait()
		former()
	})
}

func sendEarly(dir string, stop <-chan struct{}) {
	ticker := time.NewTicker(behindEvery)
	defer ticker.Stop()
	sent := map[string]int64{}
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return // Commit or Abort will say it
		}
		for _, e := range entries {
			sent[e.Name()] = sendNew(filepath.Join(dir, e.Name()), sent[e.Name()])
		}
	}
}

// sendNew sends what a file has beyond from, which is how far it has been sent, and returns
// how far it has been sent now. What it cannot do is left to the sync at the end.
func sendNew(path string, from int64) int64 {
	file, err := openPlain(path)
	if err != nil {
		return from
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() <= from {
		return from
	}
	if err := unix.SyncFileRange(int(file.Fd()), from, info.Size()-from, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return from
	}
	return info.Size()
}
