package system_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

const mib = 1 << 20

func TestExecResults(t *testing.T) {
	s := newSandbox(t, theProgram(t), object{"env": object{"FROM": "sandbox"}})
	for name, tt := range map[string]struct {
		fields object
		want   result
	}{
		"both streams": {
			object{"cmd": "sh", "args": []string{"-c", "echo out; echo err >&2; exit 7"}},
			result{stdout: "out\n", stderr: "err\n", code: 7, encoding: "utf-8"},
		},
		"a signal":             {object{"cmd": "sh", "args": []string{"-c", "kill -TERM $$"}}, result{code: -1, signal: "SIGTERM", encoding: "utf-8"}},
		"a timeout":            {object{"cmd": "sleep", "args": []string{"1000"}, "timeout_sec": 1}, result{code: -1, signal: "SIGKILL", timedOut: true, encoding: "utf-8"}},
		"stdin":                {object{"cmd": "tr", "args": []string{"a-z", "A-Z"}, "stdin": "höllo"}, result{stdout: "HöLLO", encoding: "utf-8"}},
		"no stdin":             {object{"cmd": "cat"}, result{encoding: "utf-8"}},
		"directory":            {object{"cmd": "pwd", "cwd": "/usr/share"}, result{stdout: "/usr/share\n", encoding: "utf-8"}},
		"user":                 {object{"cmd": "id", "args": []string{"-un"}, "user": "root"}, result{stdout: "root\n", encoding: "utf-8"}},
		"environment":          {object{"cmd": "sh", "args": []string{"-c", "echo $FROM $A"}, "envs": object{"A": "request"}}, result{stdout: "sandbox request\n", encoding: "utf-8"}},
		"arguments are one":    {object{"cmd": "printf", "args": []string{"[%s]", "a b", "", "*"}}, result{stdout: "[a b][][*]", encoding: "utf-8"}},
		"unicode":              {object{"cmd": "printf", "args": []string{"%s", "ünï→😀"}}, result{stdout: "ünï→😀", encoding: "utf-8"}},
		"bytes that are not":   {object{"cmd": "printf", "args": []string{`\377\376\000x`}}, result{stdout: "\xff\xfe\x00x", encoding: "base64"}},
		"bytes on stderr only": {object{"cmd": "sh", "args": []string{"-c", `echo fine; printf '\200' >&2`}}, result{stdout: "fine\n", stderr: "\x80", encoding: "base64"}},
	} {
		if got := s.exec(t, tt.fields); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// A hundred MiB of output are cut in the answer, and cost the program no more memory than
// what it answers with.
func TestMuchOutput(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	const answered = 10 * mib
	const room = 160 * mib // the answer, encoded, and what a collector leaves lying
	before := statusKiB(t, p.cmd.Process.Pid, "VmRSS:") << 10
	p.peakMemory(t)
	r := s.exec(t, object{"cmd": "sh", "args": []string{"-c", "yes 0123456789abcde | head -c 104857600; echo done >&2"}, "timeout_sec": 60})
	if r.code != 0 || len(r.stdout) != answered || !r.truncated || r.stderr != "done\n" {
		t.Errorf("code %d, %d bytes, truncated %v, stderr %q", r.code, len(r.stdout), r.truncated, r.stderr)
	}
	if strings.Trim(r.stdout, "0123456789abcde\n") != "" {
		t.Error("the output is not what was written")
	}
	if peak := p.peakMemory(t); peak > before+room {
		t.Errorf("the program grew from %d to %d MiB", before/mib, peak/mib)
	}
	// Streamed, nothing is lost and nothing is kept.
	p.peakMemory(t)
	out, errOut, code := p.cli(t, nil, "exec", s.id, "--", "sh", "-c", "yes 0123456789abcde | head -c 104857600")
	if code != 0 || len(out) != 100*mib {
		t.Errorf("streamed: code %d, %d bytes, %s", code, len(out), errOut)
	}
	if peak := p.peakMemory(t); peak > before+room {
		t.Errorf("streaming, the program grew from %d to %d MiB", before/mib, peak/mib)
	}
}

// processCount is how many commands run in the sandbox.
func (s *sandbox) processCount(t testing.TB) int {
	t.Helper()
	var list struct{ Processes []json.RawMessage }
	if err := json.Unmarshal(s.p.call(t, http.MethodGet, s.path("/processes"), nil).body, &list); err != nil {
		t.Fatal(err)
	}
	return len(list.Processes)
}

func TestClientGoesAway(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	s.sh(t, "head -c 100000000 /dev/zero >/tmp/big")
	files := p.openFiles(t)

	t.Run("from a command", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := s.tryExec(ctx, object{"cmd": "sh", "args": []string{"-c", "yes; sleep 1000"}, "timeout_sec": 1000})
			gone <- err
		}()
		eventually(t, settleLimit, func() error {
			if n := s.processCount(t); n != 1 {
				return fmt.Errorf("%d processes", n)
			}
			return nil
		})
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		eventually(t, settleLimit, func() error {
			if n := s.processCount(t); n != 0 {
				return fmt.Errorf("%d processes run for nobody", n)
			}
			return nil
		})
		if got := s.sh(t, "pgrep -c yes || true"); got != "0" {
			t.Errorf("%s children of the command still run", got)
		}
	})
	t.Run("from a download", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		resp, err := s.download(ctx, "/tmp/big")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, mib); err != nil {
			t.Fatal(err)
		}
		cancel()
		resp.Body.Close()
	})
	t.Run("from an upload", func(t *testing.T) {
		read, write := io.Pipe()
		go func() {
			_, _ = io.CopyN(write, zeros{}, mib)
			_ = write.CloseWithError(errors.New("the client is gone"))
		}()
		req, err := p.request(t.Context(), http.MethodPost, s.path("/files/write?path=/tmp/half"), read)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("half an upload answered %d", resp.StatusCode)
		}
		eventually(t, settleLimit, func() error {
			if left := s.sh(t, "ls /tmp"); left != "big" {
				return fmt.Errorf("/tmp has %q: half a file must not be there", left)
			}
			return nil
		})
	})
	if err := s.answers(t.Context(), settleLimit); err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
	const slack = 4
	eventually(t, settleLimit, func() error {
		if now := p.openFiles(t); now > files+slack {
			return fmt.Errorf("the program has %d descriptors open, and had %d", now, files)
		}
		return nil
	})
}

// zeros is an endless file of zeros.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestExecTakesItsTime(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	began := time.Now()
	a := s.p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "sleep", "args": []string{"0.5"}})
	took := time.Since(began)
	ms, _ := a.object(t)["duration_ms"].(float64)
	const slept = 500
	if ms < slept || ms > float64(took.Milliseconds())+1 {
		t.Errorf("duration_ms is %v of the %v that the request took", ms, took)
	}
}
