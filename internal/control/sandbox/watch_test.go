package sandbox

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestReconcile(t *testing.T) {
	s, store, host := newTest(t)
	store.put(
		Sandbox{ID: "sbkept", Status: Running},
		Sandbox{ID: "sblost", Status: Running},
		Sandbox{ID: "sbback", Status: Missing, Reason: reasonMissing},
		Sandbox{ID: "sbhalf", Status: Starting},
		Sandbox{ID: "sbhalfgone", Status: Starting},
		Sandbox{ID: "sbmine", Status: Starting},
		Sandbox{ID: "sbdeleting", Status: Stopping},
		Sandbox{ID: "sbending", Status: Stopping, Reason: "its deadline passed"},
		Sandbox{ID: "sbdied", Status: Error, Reason: "boom"},
	)
	for _, id := range []string{"sbkept", "sbback", "sbhalf", "sbdeleting", "sbending", "sbstranger"} {
		host.set(HostSandbox{ID: id, Status: Running})
	}
	release := s.claim(t.Context(), "sbmine")
	defer release()
	run(t, s)

	eventually(t, "all are settled", func() bool {
		return store.row("sblost").Status == Missing && store.row("sbback").Status == Running &&
			store.row("sbhalf").ID == "" && store.row("sbhalfgone").ID == "" && store.row("sbdeleting").ID == "" &&
			store.row("sbending").Status == Stopped
	})
	if store.row("sblost").Reason == "" || store.row("sbback").Reason != "" || store.row("sbending").Reason != "its deadline passed" {
		t.Errorf("reasons: %q %q %q", store.row("sblost").Reason, store.row("sbback").Reason, store.row("sbending").Reason)
	}
	for id, want := range map[string]Status{"sbkept": Running, "sbmine": Starting, "sbdied": Error, "sbstranger": Running} {
		if got := store.row(id).Status; got != want {
			t.Errorf("%s is %q", id, got)
		}
	}
	if got := store.row("sbstranger"); !got.Web.Private() || got.Reason != reasonAdopted {
		t.Errorf("the one that nobody knew: %+v, %q; whether its ports were public is not known", got.Web, got.Reason)
	}
	for id, want := range map[string]bool{"sbkept": true, "sbback": true, "sbstranger": true, "sbhalf": false, "sbdeleting": false, "sbending": false} {
		if host.has(id) != want {
			t.Errorf("the host has %s: %v", id, !want)
		}
	}
}

func TestNewsOfTheHost(t *testing.T) {
	s, store, host := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running}, Sandbox{ID: "sb2", Status: Running}, Sandbox{ID: "sb3", Status: Running})
	for _, id := range []string{"sb1", "sb2", "sb3"} {
		host.set(HostSandbox{ID: id, Status: Running})
	}
	run(t, s)
	eventually(t, "somebody listens", func() bool { host.mu.Lock(); defer host.mu.Unlock(); return len(host.watchers) > 0 })
	host.set(HostSandbox{ID: "sb1", Status: Error, Reason: "out of memory"})
	host.set(HostSandbox{ID: "sb2", Status: Stopped})
	eventually(t, "the news is written", func() bool {
		return store.row("sb1").Status == Error && store.row("sb2").Status == Stopped
	})
	if store.row("sb1").Reason != "out of memory" || store.row("sb2").Reason != reasonEnded {
		t.Errorf("reasons %q and %q", store.row("sb1").Reason, store.row("sb2").Reason)
	}

	// The host restarts and forgets one meanwhile.
	host.mu.Lock()
	delete(host.sandboxes, "sb3")
	host.mu.Unlock()
	host.restart()
	eventually(t, "the one that was forgotten is missing", func() bool { return store.row("sb3").Status == Missing })
	if store.row("sb1").Status != Error {
		t.Error("what ended before changed")
	}
}

// startingStore lets something begin right before the first row is read.
type startingStore struct {
	Store
	begin func()
}

func (s *startingStore) Get(ctx context.Context, id string) (Sandbox, error) {
	if begin := s.begin; begin != nil {
		s.begin = nil
		begin()
	}
	return s.Store.Get(ctx, id)
}

// A resume begins while the news of the pause before it is being followed.
func TestOldNewsDoNotUndoWhatBeganSince(t *testing.T) {
	s, store, host := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Paused})
	host.set(HostSandbox{ID: "sb1", Status: Paused})
	var release func()
	s.store = &startingStore{s.store, func() {
		release = s.claim(t.Context(), "sb1")
		if ok, err := store.SetStatus(t.Context(), "sb1", Resuming, "", now(), Paused); !ok || err != nil {
			t.Errorf("the resume did not begin: %v", err)
		}
	}}
	if err := s.follow(t.Context(), HostSandbox{ID: "sb1", Status: Paused}); err != nil {
		t.Fatal(err)
	}
	if got := store.row("sb1").Status; got != Resuming {
		t.Errorf("it is %q, and the resume will not find it", got)
	}
	// When the resume has come to nothing, the news count.
	release()
	if got := store.row("sb1").Status; got != Paused {
		t.Errorf("it is %q after the resume gave up", got)
	}
}

// TestCreateRacesWithReconcile creates sandboxes while the host restarts over and over:
// none of those that were answered may be taken for lost or left over.
func TestCreateRacesWithReconcile(t *testing.T) {
	s, store, host := newTest(t)
	run(t, s)
	stop := make(chan struct{})
	restarts := make(chan struct{})
	go func() {
		defer close(restarts)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				host.restart()
			}
		}
	}()
	var ids []string
	for range 50 {
		sb, err := s.Create(t.Context(), Options{})
		if err != nil {
			t.Error(err)
			break
		}
		ids = append(ids, sb.ID)
	}
	close(stop)
	<-restarts
	for _, id := range ids {
		if got := store.row(id).Status; got != Running || !host.has(id) {
			t.Errorf("%s is %q, on the host: %v", id, got, host.has(id))
		}
	}
}

func TestDeadlineKills(t *testing.T) {
	s, store, host := newTest(t)
	run(t, s)
	sb, err := s.Create(t.Context(), Options{Deadline: time.Second, OnTimeout: Kill})
	if err != nil {
		t.Fatal(err)
	}
	host.setRunning(sb.ID, Process{PID: 1}) // busy or not
	eventually(t, "the deadline ends it", func() bool { return store.row(sb.ID).Status == Stopped })
	if host.has(sb.ID) || !strings.Contains(store.row(sb.ID).Reason, "deadline") || time.Since(sb.CreatedAt) < time.Second {
		t.Errorf("%+v", store.row(sb.ID))
	}
	if _, err := s.Processes().Exec(t.Context(), sb.ID, Command{Cmd: "x"}, nil); !fault.Is(err, fault.InvalidState) {
		t.Errorf("exec after the end: %v", err)
	}
}

func TestIdleIsIdle(t *testing.T) {
	s, store, host := newTest(t)
	c := newClocks(s)
	sb, err := s.Create(t.Context(), Options{Timeout: time.Minute, OnTimeout: Kill})
	if err != nil {
		t.Fatal(err)
	}
	pass := func() {
		c.pass(t.Context())
		c.work.Wait()
	}
	alive := func(why string) {
		t.Helper()
		if store.row(sb.ID).Status != Running {
			t.Fatalf("it was killed: %s", why)
		}
	}
	// age makes the last activity an hour old.
	age := func() {
		store.put(func() Sandbox { r := store.row(sb.ID); r.LastActiveAt = now().Add(-time.Hour); return r }())
		s.activity.mu.Lock()
		clear(s.activity.last)
		clear(s.activity.dirty)
		s.activity.mu.Unlock()
	}
	pass()
	alive("it is new")

	age()
	host.setRunning(sb.ID, Process{PID: 1})
	pass()
	alive("a command runs in it")
	host.setRunning(sb.ID)
	pass()
	alive("its command has just ended")
	pass()
	alive("its idle time begins when its command ends")

	age()
	done, err := s.use(t.Context(), sb.ID, request)
	if err != nil {
		t.Fatal(err)
	}
	pass()
	alive("a file is on its way")
	done()

	age()
	if !s.activity.seal(sb.ID, now()) {
		t.Fatal("an idle sandbox cannot be sealed")
	}
	if _, err := s.use(t.Context(), sb.ID, request); !fault.Is(err, fault.InvalidState) {
		t.Errorf("somebody came in after it was decided: %v", err)
	}
	s.activity.unseal(sb.ID)

	pass()
	if row := store.row(sb.ID); row.Status != Stopped || !strings.Contains(row.Reason, "idle") || host.has(sb.ID) {
		t.Errorf("%+v", row)
	}
}

func TestActivityIsWrittenAtTheEnd(t *testing.T) {
	s, store, _ := newTest(t)
	sb, err := s.Create(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	want, err := s.Get(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := store.row(sb.ID).LastActiveAt; !got.Equal(want.LastActiveAt) {
		t.Errorf("%v was written, want %v", got, want.LastActiveAt)
	}
}
