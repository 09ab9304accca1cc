package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds how long a test waits for an event.
const patience = 10 * time.Second

func open(t *testing.T, path string, opts Options) *Watch {
	t.Helper()
	w, err := Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// until returns the events up to last, which must come.
func until(t *testing.T, w *Watch, last Event) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []Event
	for {
		events, err := w.Next(ctx, patience)
		if err != nil {
			t.Fatalf("%v did not come: %v; %d others: %.2000v", last, err, len(all), all)
		}
		all = append(all, events...)
		if slices.Contains(events, last) {
			return all
		}
	}
}

// upTo makes a last change in the watched directory and returns everything that was told
// before it.
func upTo(t *testing.T, w *Watch, dir string) []Event {
	t.Helper()
	last := Event{"last", Create}
	must(t, os.Mkdir(filepath.Join(dir, last.Name), 0o700))
	all := until(t, w, last)
	return all[:slices.Index(all, last)]
}

// memoryDir is a directory in memory, for what makes thousands of files.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "wrenn-watch-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, got []Event, want ...Event) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("told %v\nwant %v", got, want)
	}
}

func wantCode(t *testing.T, err error, code fault.Code, says string) {
	t.Helper()
	if !fault.Is(err, code) || !strings.Contains(fault.MessageOf(err), says) {
		t.Errorf("error %v (%s), want %s saying %q", err, fault.CodeOf(err), code, says)
	}
}

// replace writes a file as an upload does.
func replace(t *testing.T, path, content string) {
	t.Helper()
	r, err := filesystem.Replace(path, filesystem.Owner{})
	must(t, err)
	_, err = r.ReadFrom(strings.NewReader(content))
	must(t, err, r.Commit())
}

func TestWhatIsTold(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/old", nil, 0o644), os.Mkdir(dir+"/sub", 0o755))
	w := open(t, dir, Options{})
	must(t, os.WriteFile(dir+"/f", []byte("x"), 0o644), os.Chmod(dir+"/f", 0o600), os.Rename(dir+"/f", dir+"/g"),
		os.Remove(dir+"/g"), os.WriteFile(dir+"/sub/unseen", []byte("x"), 0o644))
	want(t, upTo(t, w, dir),
		Event{"f", Create}, Event{"f", Write}, Event{"f", Chmod}, Event{"f", Rename}, Event{"g", Create}, Event{"g", Remove})
}

func TestUploadsAreToldByTheirOwnNames(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/old", nil, 0o644))
	w := open(t, dir, Options{})
	replace(t, dir+"/old", "new")
	replace(t, dir+"/new", "new")
	replace(t, dir+"/new", "newer")
	// Two writes in a row are one only if nobody took the first before the second.
	want(t, slices.Compact(upTo(t, w, dir)), Event{"old", Write}, Event{"new", Create}, Event{"new", Write})
}

func TestRecursive(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755), os.MkdirAll(outside+"/in/deep", 0o755),
		os.WriteFile(outside+"/in/deep/f", []byte("x"), 0o644), os.Symlink(outside, dir+"/link"))
	w := open(t, dir, Options{Recursive: true})
	must(t, os.WriteFile(dir+"/a/b/f", nil, 0o644))
	must(t, os.Rename(dir+"/a", dir+"/c"), os.WriteFile(dir+"/c/b/g", nil, 0o644))
	until(t, w, Event{"c/b/g", Create})
	must(t, os.Rename(outside+"/in", dir+"/c/in"))
	want(t, until(t, w, Event{"c/in/deep/f", Create}),
		Event{"c/in", Create}, Event{"c/in/deep", Create}, Event{"c/in/deep/f", Create})
	must(t, os.WriteFile(dir+"/c/in/deep/g", nil, 0o644))
	want(t, until(t, w, Event{"c/in/deep/g", Create}), Event{"c/in/deep/g", Create})
	// What was moved out is not told of any more, and what is made in its place is.
	must(t, os.Rename(dir+"/c/in", outside+"/out"), os.MkdirAll(dir+"/c/in/deep", 0o755))
	until(t, w, Event{"c/in/deep", Create})
	must(t, os.WriteFile(outside+"/out/deep/h", nil, 0o644), os.WriteFile(outside+"/unseen", nil, 0o644), os.WriteFile(dir+"/c/in/deep/i", nil, 0o644))
	want(t, until(t, w, Event{"c/in/deep/i", Create}), Event{"c/in/deep/i", Create})
	must(t, os.RemoveAll(dir+"/c"))
	got := until(t, w, Event{"c", Remove})
	for _, gone := range []string{"c/in/deep/i", "c/in/deep", "c/in", "c/b/f", "c/b/g", "c/b"} {
		if !slices.Contains(got, Event{gone, Remove}) {
			t.Errorf("the removal of %s was not told: %v", gone, got)
		}
	}
}

// A directory that is made and filled at once: nothing in it is missing, nothing twice.
func TestNewDirectoriesAreToldWholeAndOnce(t *testing.T) {
	dir := memoryDir(t)
	w := open(t, dir, Options{Recursive: true})
	const trees, depth, files = 20, 4, 10
	var expect []string
	for i := range trees {
		path := ""
		for d := range depth {
			path = filepath.Join(path, fmt.Sprintf("d%d.%d", i, d))
			must(t, os.Mkdir(filepath.Join(dir, path), 0o755))
			expect = append(expect, path)
			for f := range files {
				name := filepath.Join(path, fmt.Sprint("f", f))
				replace(t, filepath.Join(dir, name), "content")
				expect = append(expect, name)
			}
		}
	}
	told := map[Event]int{}
	for _, ev := range upTo(t, w, dir) {
		told[ev]++
		if filesystem.IsTemporary(filepath.Base(ev.Name)) {
			t.Errorf("%v is of a temporary file", ev)
		}
	}
	for _, name := range expect {
		if n := told[Event{name, Create}]; n != 1 {
			t.Errorf("the creation of %s was told %d times", name, n)
		}
		if filepath.Base(name)[0] == 'f' && told[Event{name, Write}] == 0 {
			t.Errorf("the writing of %s was not told", name)
		}
	}
}

// Directories that are renamed as soon as they are made are still watched, wherever they
// are by the time that the watch comes to them.
func TestRenamedWhileNew(t *testing.T) {
	dir := memoryDir(t)
	w := open(t, dir, Options{Recursive: true})
	const rounds = 100
	for i := range rounds {
		a, b := fmt.Sprintf("%s/a%d", dir, i), fmt.Sprintf("%s/b%d", dir, i)
		must(t, os.MkdirAll(a+"/x/y", 0o755), os.Rename(a, b))
	}
	until(t, w, Event{fmt.Sprintf("b%d", rounds-1), Create})
	for i := range rounds {
		name := fmt.Sprintf("b%d/x/y/f", i)
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		until(t, w, Event{name, Create})
	}
}

func TestBurst(t *testing.T) {
	dir := memoryDir(t)
	must(t, os.Mkdir(dir+"/sub", 0o755))
	w := open(t, dir, Options{Recursive: true})
	const burst = 10_000
	for i := range burst {
		must(t, os.WriteFile(fmt.Sprintf("%s/sub/%d", dir, i), []byte("x"), 0o644))
	}
	seen := map[string]int{}
	for _, ev := range upTo(t, w, dir) {
		if ev.Op == Create {
			seen[ev.Name]++
		}
	}
	for i := range burst {
		if n := seen[fmt.Sprint("sub/", i)]; n != 1 {
			t.Fatalf("the creation of file %d was told %d times, of %d files", i, n, len(seen))
		}
	}
}

func TestOwnOverflowIsReportedOnce(t *testing.T) {
	q := newQueue()
	for i := range maxQueued + 2 {
		q.put(Event{fmt.Sprint(i), Create})
	}
	_, err := q.take()
	wantCode(t, err, fault.RateLimited, "events were lost")
	events, err := q.take()
	must(t, err)
	want(t, events, Event{fmt.Sprint(maxQueued), Create}, Event{fmt.Sprint(maxQueued + 1), Create})
	q.put(Event{strings.Repeat("n", maxQueuedBytes), Create})
	q.put(Event{"more", Create})
	_, err = q.take()
	wantCode(t, err, fault.RateLimited, "events were lost")
}

// A watch that nobody asks while more comes than is kept says so once, and goes on, whatever
// the kernel keeps: gVisor's queue has no bound.
func TestBurstBeyondTheQueueIsReported(t *testing.T) {
	dir := memoryDir(t)
	names := [2]string{strings.Repeat("a", 250), strings.Repeat("b", 250)}
	for _, name := range names {
		must(t, os.WriteFile(dir+"/"+name, nil, 0o644))
	}
	w := open(t, dir, Options{Recursive: true})
	const changes = maxQueuedBytes/250 + maxQueuedBytes/2500
	for i := range changes {
		must(t, os.Chmod(dir+"/"+names[i%len(names)], 0o600))
	}
	lost := func() bool {
		w.queue.mu.Lock()
		defer w.queue.mu.Unlock()
		return w.queue.lost
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !lost(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("nothing is lost")
		}
	}
	_, err := w.Drain()
	wantCode(t, err, fault.RateLimited, "events were lost")
	// The rest of the burst may make it lose once more.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for after := 0; ; after++ {
		name := fmt.Sprint("after", after)
		must(t, os.WriteFile(dir+"/"+name, nil, 0o644))
		events, err := w.Next(ctx, patience)
		if ctx.Err() != nil {
			t.Fatal("what comes after the loss is not told")
		}
		if err != nil {
			wantCode(t, err, fault.RateLimited, "events were lost")
		}
		if slices.ContainsFunc(events, func(ev Event) bool { return strings.HasPrefix(ev.Name, "after") && ev.Op == Create }) {
			return
		}
	}
}

func TestWritesInARowAreOne(t *testing.T) {
	q := newQueue()
	for _, ev := range []Event{{"a", Write}, {"a", Write}, {"b", Write}, {"a", Write}, {"a", Create}, {"a", Create}} {
		q.put(ev)
	}
	events, err := q.take()
	must(t, err)
	want(t, events, Event{"a", Write}, Event{"b", Write}, Event{"a", Write}, Event{"a", Create}, Event{"a", Create})
}

// The kernel's queue is made to overflow by a reader that does not read; afterwards the
// tree is watched as it has become.
func TestKernelOverflowIsReportedAndSurvived(t *testing.T) {
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Skip("this system does not bound its queues")
	}
	var most int
	if _, err := fmt.Sscan(string(limit), &most); err != nil || most > 1<<17 {
		t.Skipf("the system keeps %d events, too many to make them overflow", most)
	}
	dir := memoryDir(t)
	in, err := openInotify()
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	w := &Watch{queue: newQueue(), in: in, cancel: cancel, done: make(chan struct{})}
	r := &reader{ctx: ctx, in: in, queue: w.queue, path: dir, opts: Options{Recursive: true}}
	must(t, r.begin())
	for i := range most/2 + 10 {
		name := fmt.Sprint(dir, "/", i%7)
		must(t, os.WriteFile(name, nil, 0o644), os.Remove(name))
	}
	must(t, os.Mkdir(dir+"/late", 0o755))
	go func() {
		defer close(w.done)
		r.run()
	}()
	t.Cleanup(w.Close)
	for err == nil {
		_, err = w.Next(t.Context(), patience)
	}
	wantCode(t, err, fault.RateLimited, "events were lost")
	must(t, os.WriteFile(dir+"/late/f", nil, 0o644))
	until(t, w, Event{"late/f", Create})
}

func TestEndOfTheDirectory(t *testing.T) {
	for what, end := range map[string]struct {
		do   func(dir string) error
		last Event
		says string
	}{
		"removed": {os.RemoveAll, Event{Self, Remove}, "was removed"},
		"moved":   {func(dir string) error { return os.Rename(dir, dir+"2") }, Event{Self, Rename}, "was moved"},
	} {
		dir := t.TempDir() + "/d"
		must(t, os.MkdirAll(dir+"/sub", 0o755))
		w := open(t, dir, Options{Recursive: true})
		must(t, end.do(dir))
		until(t, w, end.last)
		for range 2 {
			_, err := w.Next(t.Context(), patience)
			wantCode(t, err, fault.NotFound, end.says)
		}
		t.Log(what)
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mkfifo(dir+"/fifo", 0o600), os.WriteFile(dir+"/f", nil, 0o644), os.Symlink("loop", dir+"/loop"))
	for path, c := range map[string]struct {
		code fault.Code
		says string
	}{
		dir + "/none": {fault.NotFound, "path '" + dir + "/none' does not exist"},
		dir + "/f":    {fault.InvalidRequest, "is not a directory"},
		dir + "/f/x":  {fault.InvalidRequest, "not a directory"},
		dir + "/fifo": {fault.InvalidRequest, "is not a directory"},
		"/dev/null":   {fault.InvalidRequest, "is not a directory"},
		dir + "/loop": {fault.InvalidRequest, "symbolic links"},
	} {
		_, err := Open(t.Context(), path, Options{Recursive: true})
		wantCode(t, err, c.code, c.says)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(gone, dir, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a watch that nobody waits for began: %v", err)
	}
}

// Directories that are mounted inside themselves, and what the kernel makes up, end the
// walk and not the watch.
func TestOddMounts(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/round", 0o755), os.Mkdir(dir+"/proc", 0o755))
	for target, mount := range map[string]func(target string) error{
		dir + "/a/round": func(to string) error { return unix.Mount(dir, to, "", unix.MS_BIND, "") },
		dir + "/proc":    func(to string) error { return unix.Mount("proc", to, "proc", 0, "") },
	} {
		must(t, mount(target))
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
	}
	w := open(t, dir, Options{Recursive: true})
	must(t, os.WriteFile(dir+"/a/f", nil, 0o644))
	want(t, until(t, w, Event{"a/f", Create}), Event{"a/f", Create})
}

func TestWatchers(t *testing.T) {
	dir := t.TempDir()
	s := NewWatchers(time.Hour)
	t.Cleanup(s.Close)
	id, err := s.Create(t.Context(), dir, Options{}, true)
	must(t, err)
	must(t, os.WriteFile(dir+"/f", nil, 0o644))
	asked, err := s.Find(id)
	must(t, err)
	if asked.Path != dir || !asked.IncludeEntry {
		t.Errorf("asked %+v", asked)
	}
	until(t, asked.Watch, Event{"f", Create})
	if events, err := asked.Drain(); err != nil || len(events) != 0 {
		t.Errorf("what was taken came again: %v, %v", events, err)
	}
	must(t, s.Remove(id))
	_, err = s.Find(id)
	wantCode(t, err, fault.NotFound, id)
	wantCode(t, s.Remove(id), fault.NotFound, id)
	for range maxWatchers {
		_, err = s.Create(t.Context(), dir, Options{}, false)
		must(t, err)
	}
	_, err = s.Create(t.Context(), dir, Options{}, false)
	wantCode(t, err, fault.RateLimited, "remove some")
	s.Close()
	_, err = s.Create(t.Context(), dir, Options{}, false)
	wantCode(t, err, fault.InvalidState, "stopping")
}

func TestForgottenWatchersEnd(t *testing.T) {
	s := NewWatchers(time.Millisecond)
	t.Cleanup(s.Close)
	_, err := s.Create(t.Context(), t.TempDir(), Options{}, false)
	must(t, err)
	tick, deadline := time.NewTicker(time.Millisecond), time.After(patience)
	defer tick.Stop()
	left := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.byID)
	}
	for left() > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("a watcher that nobody asks is still there")
		}
	}
}
