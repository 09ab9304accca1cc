package system_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// wire is a connection to the program that a test can cut.
type wire struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	away  bool // nobody gets through
	conns map[net.Conn]struct{}
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: listener, to: to, conns: map[net.Conn]struct{}{}}
	var carried sync.WaitGroup
	carried.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			carried.Go(func() { w.carry(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		w.cut(true)
		carried.Wait()
	})
	return w
}

// carry passes bytes on, both ways, until either end or the test cuts it.
func (w *wire) carry(conn net.Conn) {
	defer conn.Close()
	far, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	away := w.away
	w.conns[conn], w.conns[far] = struct{}{}, struct{}{}
	w.mu.Unlock()
	if away {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, far) // that it is cut is what this is for
		_ = conn.Close()
	})
	_, _ = io.Copy(far, conn)
	_ = far.Close()
	back.Wait()
}

// cut breaks all connections, and with away no other gets through.
func (w *wire) cut(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
	for conn := range w.conns {
		_ = conn.Close()
	}
	clear(w.conns)
}

// sink is what a program prints, while it prints.
type sink struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// The output of a process is followed through a cut connection, a server that is killed and
// one that cannot be reached for a while: nothing comes twice, and every byte came or is
// counted as missing.
func TestLogsGoOn(t *testing.T) {
	dir := t.TempDir()
	p := ownProgram(t, dir, "--on-stop", "keep")
	s := newSandbox(t, p, nil)
	const burst = 400_000 // bytes, more than is kept
	script := fmt.Sprintf(`i=0
		count() { until [ -e /tmp/$1 ]; do i=$((i+1)); echo $i; echo $i >&2; sleep 0.01; done; }
		count burst; head -c %d /dev/zero | tr '\0' x; : >/tmp/over; count stop; exit 6`, burst)
	s.p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "sh", "args": []string{"-c", script}, "background": true, "tag": "job"})

	host := strings.TrimPrefix(p.url, "http://")
	w := newWire(t, host)
	ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
	defer cancel()
	follow := exec.CommandContext(ctx, p.bin, "logs", "-f", s.id, "job")
	follow.Env = append(os.Environ(), "WRENN_BASE_URL=http://"+w.listener.Addr().String(), "WRENN_API_KEY="+p.key, "HOME="+p.home)
	var out, errOut sink
	follow.Stdout, follow.Stderr = &out, &errOut
	follow.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	goesOn := func() {
		t.Helper()
		const enough = 20 // bytes
		before := len(out.String())
		eventually(t, settleLimit, func() error {
			if now := len(out.String()); now < before+enough {
				return fmt.Errorf("it has printed %d bytes, and %d before; it says %q", now, before, errOut.String())
			}
			return nil
		})
	}
	goesOn()
	w.cut(false)
	goesOn()

	p.kill()
	again := ownProgram(t, dir, "--on-stop", "keep", "--listen", host)
	s.p, again.seen.indexes = again, p.seen.indexes
	goesOn()

	w.cut(true)
	s.sh(t, "touch /tmp/burst; until [ -e /tmp/over ]; do sleep 0.01; done")
	w.cut(false)
	goesOn()
	s.sh(t, "touch /tmp/stop")
	_ = follow.Wait() // the code says it
	if code := follow.ProcessState.ExitCode(); code != 6 {
		t.Errorf("it ended with %d and says %q", code, errOut.String())
	}
	checkFollowed(t, out.String(), errOut.String(), burst)
	again.deletesAll(t)
}

// checkFollowed checks that both streams count from 1 up to a gap, and that with what is
// said to be missing they are as long as what was written.
func checkFollowed(t *testing.T, out, errOut string, burst int) {
	t.Helper()
	ours := regexp.MustCompile(`(?m)^wrenn: .*\n`)
	said := strings.Join(ours.FindAllString(errOut, -1), "")
	errOut = ours.ReplaceAllString(errOut, "")
	m := regexp.MustCompile(`connected again; (\d+) bytes`).FindStringSubmatch(said)
	if m == nil || strings.Count(said, "wrenn: connected again\n") < 2 {
		t.Fatalf("it says %q", said)
	}
	missing, err := strconv.Atoi(m[1])
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	last, lastErr := strconv.Atoi(lines[len(lines)-1])
	if err != nil || lastErr != nil {
		t.Fatalf("missing %q, the last line is %q", m[1], lines[len(lines)-1])
	}
	written := burst
	for n := 1; n <= last; n++ {
		written += 2 * len(fmt.Sprintln(n))
	}
	if got := len(out) + len(errOut); got+missing != written {
		t.Errorf("%d bytes came and %d are missing, but %d were written", got, missing, written)
	}
	gap := strings.IndexByte(out, 'x')
	before := strings.Count(out[:max(gap, 0)], "\n")
	if gap < 0 || before == 0 {
		t.Fatalf("nothing of before what is missing, or of after: %.100q", out)
	}
	for n, line := range lines[:before] {
		if line != strconv.Itoa(n+1) {
			t.Fatalf("line %d is %q", n+1, line)
		}
	}
	for n, line := range strings.SplitN(errOut, "\n", before)[:before-1] {
		if line != strconv.Itoa(n+1) {
			t.Fatalf("line %d of stderr is %q", n+1, line)
		}
	}
}
