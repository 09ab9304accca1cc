package system_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"
)

// noise is a file of bytes that do not compress and are the same for the same seed, with
// the checksum of what was read of it.
type noise struct {
	source *rand.ChaCha8
	left   int64
	sum    hash.Hash
}

func newNoise(size int64) *noise {
	seed := [32]byte{byte(size), byte(size >> 8), byte(size >> 16), byte(size >> 24)}
	return &noise{source: rand.NewChaCha8(seed), left: size, sum: sha256.New()}
}

func (n *noise) Read(p []byte) (int, error) {
	if n.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), n.left)]
	_, _ = n.source.Read(p) // never fails
	n.sum.Write(p)
	n.left -= int64(len(p))
	return len(p), nil
}

func (n *noise) checksum() string { return hex.EncodeToString(n.sum.Sum(nil)) }

func TestFilesBothWays(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, object{"memory_mb": 1024})
	const memoryRoom = 48 * mib // for a transfer of any size
	for _, size := range []int64{0, 1, 4095, 65536, 65537, mib + 1, 16 * mib, 256 * mib} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			before := statusKiB(t, p.cmd.Process.Pid, "VmRSS:") << 10
			p.peakMemory(t)
			ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
			defer cancel()
			path := fmt.Sprintf("/tmp/of/size/%d", size)
			contents := newNoise(size)
			began := time.Now()
			a, err := s.upload(ctx, path, contents)
			if err != nil || a.status != http.StatusNoContent {
				t.Fatalf("upload answered %d: %s, %v", a.status, a.body, err)
			}
			up := time.Since(began)
			if got := s.sh(t, "stat -c '%s %U' "+path+"; sha256sum <"+path); got != fmt.Sprintf("%d wrenn-user\n%s  -", size, contents.checksum()) {
				t.Fatalf("the sandbox has %s, want %s", got, contents.checksum())
			}
			began = time.Now()
			resp, err := s.download(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			sum := sha256.New()
			n, err := io.Copy(sum, resp.Body)
			if err != nil || n != size || resp.StatusCode != http.StatusOK || hex.EncodeToString(sum.Sum(nil)) != contents.checksum() {
				t.Fatalf("download: %d bytes, status %d, %v", n, resp.StatusCode, err)
			}
			peak := p.peakMemory(t)
			t.Logf("up %v, down %v, the program's memory %d to %d MiB", up, time.Since(began), before/mib, peak/mib)
			if peak > before+memoryRoom {
				t.Errorf("the program grew from %d to %d MiB", before/mib, peak/mib)
			}
		})
	}
	const guestRoom = 64 << 10 // KiB
	var kib int
	if _, err := fmt.Sscan(s.sh(t, "awk '/VmRSS/ {print $2}' /proc/1/status"), &kib); err != nil || kib > guestRoom {
		t.Errorf("the guest daemon holds %d KiB (%v)", kib, err)
	}
}

func TestFileOperations(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	call := func(route string, body object, want int) answer {
		t.Helper()
		a := s.p.call(t, http.MethodPost, s.path("/files/"+route), body)
		if a.status != want {
			t.Errorf("%s %v answered %d: %s", route, body, a.status, a.body)
		}
		return a
	}
	type entry struct {
		Name, Path, Type, Permissions, Owner, Group string
		Size, Mode                                  int64
		ModifiedAt                                  int64  `json:"modified_at"`
		SymlinkTarget                               string `json:"symlink_target"`
	}
	one := func(a answer) entry {
		t.Helper()
		var o struct{ Entry entry }
		if err := json.Unmarshal(a.body, &o); err != nil {
			t.Errorf("%v: %s", err, a.body)
		}
		return o.Entry
	}
	made := one(call("mkdir", object{"path": "deep/er"}, http.StatusOK))
	if made.Path != "/home/wrenn-user/deep/er" || made.Type != "directory" || made.Owner != "wrenn-user" {
		t.Errorf("mkdir made %+v", made)
	}
	a := s.p.call(t, http.MethodPost, s.path("/files/write?path=deep/er/ünï%20code"), bytes.NewReader([]byte("text")))
	if a.status != http.StatusNoContent {
		t.Errorf("write answered %d: %s", a.status, a.body)
	}
	s.sh(t, "ln -s er/x deep/link && chmod 600 deep/er/*")
	file := one(call("stat", object{"path": "deep/er/ünï code"}, http.StatusOK))
	if file.Size != 4 || file.Mode != 0o600 || file.Permissions != "-rw-------" || file.Group != "wrenn-user" || time.Since(time.Unix(file.ModifiedAt, 0)) > time.Minute {
		t.Errorf("stat says %+v", file)
	}
	if link := one(call("stat", object{"path": "deep/link"}, http.StatusOK)); link.Type != "symlink" || link.SymlinkTarget != "/home/wrenn-user/deep/er/x" || !strings.HasPrefix(link.Permissions, "l") {
		t.Errorf("stat of a link says %+v", link)
	}
	var list struct{ Entries []entry }
	if err := json.Unmarshal(call("list", object{"path": "deep", "depth": 2}, http.StatusOK).body, &list); err != nil || len(list.Entries) != 3 {
		t.Errorf("list says %+v, %v", list, err)
	}
	if moved := one(call("move", object{"from": "deep/er/ünï code", "to": "/tmp/moved"}, http.StatusOK)); moved.Path != "/tmp/moved" {
		t.Errorf("move says %+v", moved)
	}
	if got := string(call("read", object{"path": "/tmp/moved"}, http.StatusOK).body); got != "text" {
		t.Errorf("read says %q", got)
	}
	if got := string(call("stream/read", object{"path": "/tmp/moved"}, http.StatusOK).body); got != "text" {
		t.Errorf("stream/read says %q", got)
	}
	a = s.p.call(t, http.MethodPost, s.path("/files/stream/write?path=/tmp/moved"), bytes.NewReader([]byte("new")))
	if got := s.sh(t, "cat /tmp/moved"); a.status != http.StatusNoContent || got != "new" {
		t.Errorf("stream/write answered %d, and the file is %q", a.status, got)
	}
	call("remove", object{"path": "deep"}, http.StatusNoContent)
	call("remove", object{"path": "deep"}, http.StatusNoContent) // what is gone is gone
	call("stat", object{"path": "deep"}, http.StatusNotFound)
}
