package child

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// children returns this process's children, zombies too.
func children(t *testing.T) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestOrphansAreReapedAndChildrenKeepTheirStatus(t *testing.T) {
	if err := Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })

	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 10 {
				// Each leaves five orphans, of which some end before it and some after.
				want := (worker*10 + i) % 100
				cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("for i in 0 0 0.01 0.02 0.05; do (sleep $i &) ; done; exit %d", want))
				err := Run(cmd)
				if got := cmd.ProcessState.ExitCode(); got != want {
					t.Errorf("exit code %d, want %d (%v)", got, want, err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "every orphan is reaped", func() bool { return len(children(t)) == 0 })
}

func TestWhatCannotStartIsAnError(t *testing.T) {
	if err := Run(exec.Command("/no/such/program")); err == nil {
		t.Error("a program that does not exist ran")
	}
}
