package sandbox

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCreateGivesDefaults(t *testing.T) {
	s, store, host := newTest(t)
	var spec Spec
	host.onCreate = func(_ context.Context, sp Spec) error {
		spec = sp
		if got := store.row(sp.ID).Status; got != Starting {
			t.Errorf("the row is %q while the host is asked", got)
		}
		return nil
	}
	sb, err := s.Create(t.Context(), Options{User: "u", Env: map[string]string{"A": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^sb[a-z0-9]{20}$`).MatchString(sb.ID) {
		t.Errorf("id %q", sb.ID)
	}
	want := Resources{VCPUs: 1, MemoryMB: 512, DiskMB: 10240}
	if sb.Status != Running || sb.Template != "base" || sb.Resources != want || sb.OnTimeout != Pause || sb.Timeout != 0 ||
		sb.HostID != "h1" || sb.Runtime != "fake" || sb.GuestIP != "10.0.0.2" || !sb.EndsAt().IsZero() {
		t.Errorf("%+v", sb)
	}
	if spec.ID != sb.ID || spec.Resources != want || spec.Template != "base" || spec.User != "u" || spec.Env["A"] != "1" {
		t.Errorf("the host was asked for %+v", spec)
	}
	if got, err := s.Get(t.Context(), sb.ID); err != nil || got.Status != Running || !got.CreatedAt.Equal(sb.CreatedAt) {
		t.Errorf("%+v %v", got, err)
	}
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	for name, fail := range map[string]func(h *fakeHost, cancel context.CancelFunc) (want fault.Code){
		"the host refuses": func(h *fakeHost, _ context.CancelFunc) fault.Code {
			h.onCreate = func(context.Context, Spec) error { return fault.New(fault.NotFound, "no such template") }
			return fault.NotFound
		},
		"the client goes while the host works": func(h *fakeHost, cancel context.CancelFunc) fault.Code {
			h.onCreate = func(ctx context.Context, _ Spec) error { cancel(); return ctx.Err() }
			return fault.Canceled
		},
		"the client goes just before the answer": func(h *fakeHost, cancel context.CancelFunc) fault.Code {
			h.onCreate = func(context.Context, Spec) error { cancel(); return nil }
			return fault.Canceled
		},
	} {
		s, store, host := newTest(t)
		ctx, cancel := context.WithCancel(t.Context())
		want := fail(host, cancel)
		if _, err := s.Create(ctx, Options{}); !fault.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if store.len() != 0 || len(host.sandboxes) != 0 {
			t.Errorf("%s: %d rows and %d sandboxes are left", name, store.len(), len(host.sandboxes))
		}
		if len(s.claims.held) != 0 {
			t.Errorf("%s: the id is still claimed", name)
		}
		cancel()
	}
}

func TestDeletedWhileItStarts(t *testing.T) {
	s, store, host := newTest(t)
	host.onCreate = func(ctx context.Context, sp Spec) error { return s.Delete(ctx, sp.ID) }
	if _, err := s.Create(t.Context(), Options{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
	if store.len() != 0 || len(host.sandboxes) != 0 {
		t.Errorf("%d rows and %d sandboxes are left", store.len(), len(host.sandboxes))
	}
}

func TestCreateRefuses(t *testing.T) {
	s, store, _ := newTest(t)
	many := make(map[string]string)
	for i := range maxLabels + 1 {
		many[fmt.Sprint(i)] = ""
	}
	for want, o := range map[string]Options{
		`"vcpus" is 3, and this host gives a sandbox at most 2`:                    {Resources: Resources{VCPUs: 3}},
		`"memory_mb" is 5000 MiB, and this host gives a sandbox at most 4096 MiB`:  {Resources: Resources{MemoryMB: 5000}},
		`"disk_size_mb" is 99999 MiB, and this host gives a sandbox at most 20480`: {Resources: Resources{DiskMB: 99999}},
		`a name in field "env" must have`:                                          {Env: map[string]string{"A=B": "1"}},
		`the value of "A" in field "env" must not contain a NUL`:                   {Env: map[string]string{"A": "1\x00"}},
		`a key in field "metadata" must have`:                                      {Metadata: map[string]string{"": "x"}},
		`"metadata" may have at most 64`:                                           {Metadata: many},
		`"user" must not contain a NUL`:                                            {User: "\x00"},
		`"deadline_sec" must be 0`:                                                 {Deadline: -1},
	} {
		if _, err := s.Create(t.Context(), o); !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if store.len() != 0 {
		t.Error("a row was made")
	}
}

func TestDelete(t *testing.T) {
	s, store, host := newTest(t)
	sb, err := s.Create(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.Delete(t.Context(), sb.ID); err != nil && !fault.Is(err, fault.NotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if store.len() != 0 || host.has(sb.ID) {
		t.Error("it is still there")
	}
	if err := s.Delete(t.Context(), sb.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown id: %v", err)
	}
	// What ended by itself is forgotten when it is deleted, though the host does not know it.
	store.put(Sandbox{ID: "sbdead", Status: Error, Reason: "boom"})
	if err := s.Delete(t.Context(), "sbdead"); err != nil || store.len() != 0 {
		t.Errorf("%v, %d rows", err, store.len())
	}
}

func TestListPages(t *testing.T) {
	s, store, _ := newTest(t)
	base := now()
	for i := range 5 {
		store.put(Sandbox{ID: fmt.Sprintf("sb%d", i), Status: Running, CreatedAt: base.Add(time.Duration(i/2) * time.Second)})
	}
	var ids []string
	q := Query{Limit: 2}
	for pages := 0; ; pages++ {
		page, err := s.List(t.Context(), q)
		if err != nil || pages > 3 {
			t.Fatal(pages, err)
		}
		for _, sb := range page.Sandboxes {
			ids = append(ids, sb.ID)
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
	}
	if got := strings.Join(ids, " "); got != "sb4 sb2 sb3 sb0 sb1" {
		t.Error(got)
	}
	if page, err := s.List(t.Context(), Query{Limit: 5}); err != nil || page.Next != "" || len(page.Sandboxes) != 5 {
		t.Errorf("a page that is just full: next %q, %v", page.Next, err)
	}
	for _, bad := range []string{"x", "!!", encodeCursor(Sandbox{}), "MTIz"} {
		if _, err := s.List(t.Context(), Query{Cursor: bad}); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("cursor %q: %v", bad, err)
		}
	}
}

func TestOnlyARunningSandboxIsUsed(t *testing.T) {
	s, store, _ := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Error, Reason: "out of memory"})
	_, exec := s.Processes().Exec(t.Context(), "sb1", Command{Cmd: "x"}, nil)
	_, list := s.Processes().List(t.Context(), "sb1")
	_, stat := s.Files().Stat(t.Context(), "sb1", "", "/x")
	for name, err := range map[string]error{
		"exec": exec, "list": list, "stat": stat, "ping": s.Ping(t.Context(), "sb1"),
		"signal": s.Processes().Signal(t.Context(), "sb1", Selector{PID: 1}, SIGKILL),
		"write":  s.Files().Write(t.Context(), "sb1", "", "/x", strings.NewReader(""), 0),
	} {
		if !fault.Is(err, fault.InvalidState) || !strings.Contains(fault.MessageOf(err), `is error (out of memory)`) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Ping(t.Context(), "sbnone"); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown id: %v", err)
	}
}

func TestBadPaths(t *testing.T) {
	s, store, _ := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running})
	for _, path := range []string{"", "a\x00b", strings.Repeat("ä", maxPath/2+1)} {
		if _, err := s.Files().Stat(t.Context(), "sb1", "", path); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%.10q: %v", path, err)
		}
		if _, err := s.Files().Move(t.Context(), "sb1", "", "/ok", path); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%.10q: %v", path, err)
		}
	}
}

func TestActivityIsShownAtOnceAndWrittenLater(t *testing.T) {
	s, store, _ := newTest(t)
	sb, err := s.Create(t.Context(), Options{Timeout: time.Hour, OnTimeout: Kill})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the clock moves on", func() bool { return now().After(sb.LastActiveAt) })
	if err := s.Ping(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(t.Context(), sb.ID)
	if err != nil || !got.LastActiveAt.After(sb.LastActiveAt) || !got.EndsAt().Equal(got.LastActiveAt.Add(time.Hour)) {
		t.Errorf("active %v, before %v, ends %v, %v", got.LastActiveAt, sb.LastActiveAt, got.EndsAt(), err)
	}
	if err := s.activity.flush(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	if at := store.row(sb.ID).LastActiveAt; !at.Equal(got.LastActiveAt) {
		t.Errorf("written: %v, shown: %v", at, got.LastActiveAt)
	}
	s.activity.now = func() time.Time { return now().Add(2 * keepFor) }
	if err := s.activity.flush(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	if len(s.activity.last)+len(s.activity.dirty) != 0 {
		t.Error("what was written long ago is still kept")
	}
}

func TestIDsAreSpread(t *testing.T) {
	seen := make(map[byte]int)
	for range 2000 {
		for _, c := range []byte(newID()[2:]) {
			seen[c]++
		}
	}
	// 40000 characters of 36: each about 1111 times, with a deviation of 33.
	for _, c := range []byte(idAlphabet) {
		if n := seen[c]; n < 900 || n > 1330 {
			t.Errorf("%c came %d times", c, n)
		}
	}
}

func TestEndsAt(t *testing.T) {
	t0 := now()
	for name, c := range map[string]struct {
		sb       Sandbox
		want     time.Time
		deadline bool
	}{
		"neither":            {Sandbox{CreatedAt: t0}, time.Time{}, false},
		"never active":       {Sandbox{CreatedAt: t0, Timeout: time.Second}, t0.Add(time.Second), false},
		"idle":               {Sandbox{CreatedAt: t0, LastActiveAt: t0.Add(time.Minute), Timeout: time.Second}, t0.Add(61 * time.Second), false},
		"deadline":           {Sandbox{CreatedAt: t0, Deadline: time.Hour}, t0.Add(time.Hour), true},
		"idle is sooner":     {Sandbox{CreatedAt: t0, Deadline: time.Hour, Timeout: time.Second}, t0.Add(time.Second), false},
		"deadline is sooner": {Sandbox{CreatedAt: t0, LastActiveAt: t0.Add(time.Hour), Deadline: time.Hour, Timeout: time.Second}, t0.Add(time.Hour), true},
		"it is over":         {Sandbox{CreatedAt: t0, Deadline: time.Hour, Status: Stopped}, time.Time{}, false},
	} {
		if at, deadline := c.sb.end(); !at.Equal(c.want) || deadline != c.deadline {
			t.Errorf("%s: %v %v", name, at, deadline)
		}
	}
}
