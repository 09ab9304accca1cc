package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
)

// watching is a WatchDir stream that has begun.
type watching struct {
	t      *testing.T
	stream *connect.ServerStreamForClient[filesystempb.WatchDirResponse]
}

func watchDir(t *testing.T, client filesystemconnect.FilesystemClient, msg *filesystempb.WatchDirRequest, headers ...string) watching {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	req := as("", msg)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header().Set(headers[i], headers[i+1])
	}
	stream, err := client.WatchDir(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = stream.Close() })
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		t.Fatalf("the stream begins with %v, %v", stream.Msg(), stream.Err())
	}
	return watching{t, stream}
}

// until returns the events up to the one of this type and name.
func (w watching) until(kind filesystempb.EventType, name string) []*filesystempb.FilesystemEvent {
	w.t.Helper()
	var all []*filesystempb.FilesystemEvent
	for w.stream.Receive() {
		if event := w.stream.Msg().GetFilesystem(); event != nil {
			all = append(all, event)
			if event.GetType() == kind && event.GetName() == name {
				return all
			}
		}
	}
	w.t.Fatalf("%v of %s did not come: %v", kind, name, w.stream.Err())
	return nil
}

const (
	created = filesystempb.EventType_EVENT_TYPE_CREATE
	changed = filesystempb.EventType_EVENT_TYPE_WRITE
	removed = filesystempb.EventType_EVENT_TYPE_REMOVE
)

func TestWatchDir(t *testing.T) {
	g := newGuest(t)
	for name, client := range map[string]filesystemconnect.FilesystemClient{"binary": g.files, "json": g.jsonFiles} {
		dir := t.TempDir()
		w := watchDir(t, client, &filesystempb.WatchDirRequest{Path: dir, Recursive: true, IncludeEntry: true})
		resp, body := g.do(t, "POST", at(dir+"/new/dir/f"), strings.NewReader("12345"), "Content-Type", octets)
		g.want(t, resp, body, 200, "")
		got := w.until(changed, "new/dir/f")
		entry := got[len(got)-1].GetEntry()
		if entry.GetPath() != dir+"/new/dir/f" || entry.GetSize() != 5 || entry.GetType() != filesystempb.FileType_FILE_TYPE_FILE {
			t.Errorf("%s: entry %v", name, entry)
		}
		// Names are any bytes, messages are not.
		if err := os.WriteFile(dir+"/bad\xff", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		w.until(created, "bad\uFFFD")
		list, err := client.ListDir(t.Context(), as("", &filesystempb.ListDirRequest{Path: dir}))
		if err != nil || len(list.Msg.GetEntries()) != 2 {
			t.Errorf("%s: a list with a name that is not UTF-8: %v, %v", name, list, err)
		}
		if err := os.RemoveAll(dir + "/new"); err != nil {
			t.Fatal(err)
		}
		for _, event := range w.until(removed, "new") {
			if event.GetType() == removed && event.GetEntry() != nil {
				t.Errorf("%s: what is gone has an entry: %v", name, event)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		w.until(removed, ".")
		if w.stream.Receive() {
			t.Errorf("%s: more after the end: %v", name, w.stream.Msg())
		}
		wantConnect(t, w.stream.Err(), connect.CodeNotFound, "was removed")
	}
}

func TestWatchDirRefuses(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, user string
		code       connect.Code
		says       string
	}{
		{dir + "/none", "", connect.CodeNotFound, "path '" + dir + "/none' does not exist"},
		{dir + "/f", "", connect.CodeInvalidArgument, "is not a directory"},
		{dir + "/\x00", "", connect.CodeInvalidArgument, "NUL"},
		{"~other", "", connect.CodeInvalidArgument, "another user's home"},
		{dir, "ghost", connect.CodeUnauthenticated, "invalid username: 'ghost'"},
	} {
		stream, err := g.jsonFiles.WatchDir(t.Context(), as(c.user, &filesystempb.WatchDirRequest{Path: c.path}))
		if err == nil {
			if stream.Receive() {
				t.Errorf("%s: the stream began with %v", c.path, stream.Msg())
			}
			err = stream.Err()
			_ = stream.Close()
		}
		wantConnect(t, err, c.code, c.says)
		_, err = g.files.CreateWatcher(t.Context(), as(c.user, &filesystempb.CreateWatcherRequest{Path: c.path}))
		wantConnect(t, err, c.code, c.says)
	}
}

func TestWatchDirKeepsAlive(t *testing.T) {
	g := newGuest(t)
	w := watchDir(t, g.jsonFiles, &filesystempb.WatchDirRequest{Path: t.TempDir()}, "Keepalive-Ping-Interval", "1")
	if !w.stream.Receive() || w.stream.Msg().GetKeepalive() == nil {
		t.Fatalf("after silence came %v, %v", w.stream.Msg(), w.stream.Err())
	}
}

// A client that goes away leaves nothing behind; newGuest's clean-up and the leak check of
// this package would see it.
func TestWatchDirEndsWithItsClient(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	before := openFiles(t)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		stream, err := g.files.WatchDir(ctx, as("", &filesystempb.WatchDirRequest{Path: dir, Recursive: true}))
		if err != nil || !stream.Receive() {
			t.Fatal(err, stream.Err())
		}
		cancel()
		_ = stream.Close()
	}
	g.http.CloseIdleConnections()
	eventually(t, "every watch has ended", func() bool { return openFiles(t) <= before })
}

// openFiles counts the inotify descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.Contains(target, "inotify") {
			count++
		}
	}
	return count
}

func TestPolledWatcher(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	made, err := g.jsonFiles.CreateWatcher(t.Context(), as("", &filesystempb.CreateWatcherRequest{Path: dir, Recursive: true, IncludeEntry: true}))
	if err != nil {
		t.Fatal(err)
	}
	id := made.Msg.GetWatcherId()
	resp, body := g.do(t, "POST", at(dir+"/sub/f"), strings.NewReader("1"), "Content-Type", octets)
	g.want(t, resp, body, 200, "")
	var all []*filesystempb.FilesystemEvent
	var last *filesystempb.FilesystemEvent // or nearly: the new directory's owner may be told later
	eventually(t, "the upload is told", func() bool {
		got, err := g.jsonFiles.GetWatcherEvents(t.Context(), as("", &filesystempb.GetWatcherEventsRequest{WatcherId: id}))
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range got.Msg.GetEvents() {
			all = append(all, event)
			if event.GetType() == changed {
				last = event
			}
		}
		return last != nil
	})
	if last.GetName() != "sub/f" || last.GetEntry().GetSize() != 1 || all[0].GetName() != "sub" || all[0].GetType() != created {
		t.Errorf("told %v", all)
	}
	if _, err := g.files.RemoveWatcher(t.Context(), as("", &filesystempb.RemoveWatcherRequest{WatcherId: id})); err != nil {
		t.Fatal(err)
	}
	_, err = g.files.GetWatcherEvents(t.Context(), as("", &filesystempb.GetWatcherEventsRequest{WatcherId: id}))
	wantConnect(t, err, connect.CodeNotFound, id)
	_, err = g.files.RemoveWatcher(t.Context(), as("", &filesystempb.RemoveWatcherRequest{WatcherId: id}))
	wantConnect(t, err, connect.CodeNotFound, id)
}

// memoryDir returns a directory in memory, where a burst does not wait for a busy disk.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "wrenn-watch-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestWatchDirOfABurst(t *testing.T) {
	g := newGuest(t)
	dir := memoryDir(t)
	w := watchDir(t, g.jsonFiles, &filesystempb.WatchDirRequest{Path: dir})
	const burst = 10_000
	failed := make(chan error, 1)
	go func() {
		for i := range burst {
			if err := os.WriteFile(fmt.Sprint(dir, "/", i), []byte("x"), 0o644); err != nil {
				failed <- err
				return
			}
		}
		failed <- os.WriteFile(dir+"/last", nil, 0o644)
	}()
	seen := map[string]bool{}
	for _, event := range w.until(created, "last") {
		if event.GetType() == created {
			seen[event.GetName()] = true
		}
	}
	if err := <-failed; err != nil || len(seen) != burst+1 {
		t.Errorf("%d of %d creations were told, %v", len(seen)-1, burst, err)
	}
}

// A client that does not read for long is told that it missed something, and nothing is kept
// for it without bound.
func TestWatchDirTellsOfLoss(t *testing.T) {
	wantLoopbackToGoOn(t)
	g := newGuest(t)
	dir := memoryDir(t)
	names := [2]string{dir + "/a" + strings.Repeat("n", 250), dir + "/b" + strings.Repeat("n", 250)}
	for _, name := range names {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w := watchDir(t, g.files, &filesystempb.WatchDirRequest{Path: dir})
	// More than the buffers on the way, the kernel's queue and the daemon's hold, which of
	// such names takes 8 MiB.
	const changes = 80_000
	for i := range changes {
		if err := os.Chmod(names[i%len(names)], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := 0
	for w.stream.Receive() {
		read++
	}
	wantConnect(t, w.stream.Err(), connect.CodeResourceExhausted, "events were lost")
	if read >= changes {
		t.Errorf("%d events came of %d changes", read, changes)
	}
}

// FuzzWatchDir sends anything as a watch request and wants an answer of the protocol.
func FuzzWatchDir(f *testing.F) {
	dir := f.TempDir()
	f.Add([]byte(`{"path":"` + dir + `"}`))
	for _, seed := range []string{
		``, `{}`, `{"path":"/none"}`, `{"path":"~x","recursive":true}`, `{"path":"/dev/null","include_entry":true}`,
		`{"path":"\u0000"}`, `{"path":"../..","allowNetworkMounts":true}`, `{"path":1}`, `{"path":"/proc/self/root/proc"}`, `[`, "\xff", `{"watcherId":"x"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		g := newGuest(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		frame := append([]byte{0, byte(len(body) >> 24), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
		for path, kind := range map[string]string{"WatchDir": "application/connect+json", "CreateWatcher": "application/json", "GetWatcherEvents": "application/json", "RemoveWatcher": "application/json"} {
			send := body
			if path == "WatchDir" {
				send = frame
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+"/filesystem.Filesystem/"+path, bytes.NewReader(send))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", kind)
			req.Header.Set("Connect-Timeout-Ms", "20")
			resp, err := g.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			if resp.StatusCode == http.StatusInternalServerError || bytes.Contains(answer, []byte(`"internal"`)) || bytes.Contains(answer, []byte(`"unknown"`)) {
				t.Fatalf("%s: %d %s", path, resp.StatusCode, answer)
			}
		}
	})
}
