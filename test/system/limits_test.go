package system_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
)

// answerLimit is how long a sandbox may take to run a trivial command while its
// neighbour does its worst, in wall time of a machine of two cores.
const answerLimit = 5 * time.Second

// watchNeighbour runs a command in s again and again until the test calls the function
// that it returns, which fails the test if s once did not answer in time.
func watchNeighbour(t *testing.T, s *sandbox) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	type report struct {
		slowest time.Duration
		count   int
		err     error
	}
	reports := make(chan report, 1)
	go func() {
		var r report
		for ctx.Err() == nil && r.err == nil {
			began := time.Now()
			r.err = s.answers(context.WithoutCancel(ctx), answerLimit)
			r.slowest = max(r.slowest, time.Since(began))
			r.count++
		}
		reports <- r
	}()
	return func() {
		t.Helper()
		cancel()
		r := <-reports
		if r.err != nil {
			t.Errorf("the neighbour stopped answering: %v", r.err)
		}
		t.Logf("the neighbour answered %d times, at the slowest in %v", r.count, r.slowest)
	}
}

// requireBounded checks that a sandbox which misbehaved is usable, or ended with a
// reason, and that it can be deleted.
func requireBounded(t *testing.T, s *sandbox) {
	t.Helper()
	status, reason := s.status(t)
	t.Logf("the sandbox is %s %q", status, reason)
	switch {
	case status == "running":
		eventually(t, settleLimit, func() error {
			if now, _ := s.status(t); now != "running" {
				return nil // it ended after all
			}
			return s.answers(t.Context(), answerLimit)
		})
	case !slices.Contains([]string{"stopped", "error"}, status) || reason == "":
		t.Errorf("the sandbox is %s with the reason %q", status, reason)
	}
	if a := s.p.call(t, http.MethodDelete, s.path(""), nil); a.status != http.StatusNoContent {
		t.Errorf("delete answered %d: %s", a.status, a.body)
	}
}

func TestFullDisk(t *testing.T) {
	p := theProgram(t)
	s, other := newSandbox(t, p, object{"disk_size_mb": 64}), newSandbox(t, p, nil)
	end := watchNeighbour(t, other)
	defer end()
	r := s.exec(t, object{"cmd": "sh", "args": []string{"-c", "head -c 100000000 /dev/zero >~/big; echo $?; ls -l ~/big | wc -l"}, "timeout_sec": 60})
	if r.stdout != "1\n1\n" || r.stderr == "" {
		t.Errorf("writing beyond the disk: %+v", r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
	defer cancel()
	a, err := s.upload(ctx, "/home/wrenn-user/more", &limitedZeros{left: 100 * mib})
	if err != nil {
		t.Fatalf("an upload to a full disk: %v", err)
	}
	const insufficientStorage = 507
	if code, _ := a.fault(t); a.status != insufficientStorage || code != "insufficient_space" {
		t.Errorf("an upload to a full disk answered %d: %s", a.status, a.body)
	}
	if got := s.sh(t, "rm ~/big && echo room >~/now && cat ~/now && ls ~/more 2>/dev/null || echo none"); got != "room\nnone" {
		t.Errorf("after making room: %q", got)
	}
	if free := s.sh(t, "df -m --output=size / | tail -1 | tr -d ' '"); free != "64" {
		t.Errorf("the guest sees a disk of %s MiB", free)
	}
}

// limitedZeros is a file of zeros of a given length.
type limitedZeros struct{ left int64 }

func (z *limitedZeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.left))
	clear(p[:n])
	z.left -= int64(n)
	return n, nil
}

func TestForkBomb(t *testing.T) {
	p := theProgram(t)
	s, other := newSandbox(t, p, nil), newSandbox(t, p, nil)
	end := watchNeighbour(t, other)
	bomb := "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
	const burns = 8 // seconds
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	r, err := s.tryExec(ctx, object{"cmd": "python3", "args": []string{"-c", bomb}, "timeout_sec": burns})
	t.Logf("the bomb ended with %+v, %v", r, err)
	if err == nil && !r.timedOut && r.signal == "" {
		t.Error("the bomb did not go off")
	}
	end()
	requireBounded(t, s)
}

func TestMemoryHog(t *testing.T) {
	p := theProgram(t)
	s, other := newSandbox(t, p, object{"memory_mb": 256}), newSandbox(t, p, nil)
	end := watchNeighbour(t, other)
	hog := "import time\nkeep = []\nwhile True:\n  keep.append(b'x' * (16 << 20))\n  time.sleep(0)\n"
	ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
	defer cancel()
	r, err := s.tryExec(ctx, object{"cmd": "python3", "args": []string{"-c", hog}, "timeout_sec": 20})
	t.Logf("the hog ended with %+v, %v", r, err)
	if err == nil && r.code == 0 {
		t.Error("the hog was not stopped")
	}
	if r.timedOut {
		t.Error("the hog went on until its time was up: there is no limit")
	}
	end()
	requireBounded(t, s)
}

// A sandbox that ends by itself says so, and answers no more.
func TestEndedSandbox(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
	defer cancel()
	// The kernel protects the first process from SIGKILL from below; envd obeys SIGTERM.
	_, _ = s.tryExec(ctx, object{"cmd": "kill", "args": []string{"-TERM", "1"}, "user": "root"})
	eventually(t, settleLimit, func() error {
		if status, reason := s.status(t); status != "error" && status != "stopped" || reason == "" {
			return errStill("it is " + status + ": " + reason)
		}
		return nil
	})
	if a := p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "true"}); a.status != http.StatusConflict {
		t.Errorf("exec in a sandbox that has ended: %d %s", a.status, a.body)
	}
}

// What is written to /tmp is on the disk, not in memory.
func TestTmpIsOnTheDisk(t *testing.T) {
	s := newSandbox(t, theProgram(t), object{"memory_mb": 256})
	if out := s.sh(t, "dd if=/dev/zero of=/tmp/large bs=1M count=600 2>/dev/null && stat -c %s /tmp/large"); out != "629145600" {
		t.Errorf("a file of 600 MiB in /tmp: %s", out)
	}
}
