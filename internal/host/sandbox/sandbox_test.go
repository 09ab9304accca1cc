package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

func request(id string) CreateRequest {
	return CreateRequest{
		ID: id, Template: "base", Resources: Resources{VCPUs: 1, MemoryMB: 512, DiskMB: 1024},
		Env: map[string]string{"COLOUR": "green"},
	}
}

// eventually waits for a condition for at most ten seconds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestCreateGivesARunningSandbox(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	sb, err := s.Create(t.Context(), request("sba0000000000000000000"))
	if err != nil {
		t.Fatal(err)
	}
	if sb.Status != Running || sb.GuestIP != "127.113.0.1" || sb.HostIP != "127.113.1.1" || sb.StartedAt.IsZero() {
		t.Errorf("created %+v", sb)
	}
	in := m.inits["sba0000000000000000000"]
	if in.DefaultUser != "wrenn-user" || in.Hostname != "sba0000000000000000000" || in.EnvVars["COLOUR"] != "green" || len(in.AccessToken) != 2*tokenBytes ||
		len(in.Nameservers) != 1 || in.Nameservers[0] != "127.113.1.1" {
		t.Errorf("the guest was told %+v", in)
	}
	if _, err := s.Guest("sba0000000000000000000"); err != nil {
		t.Error(err)
	}
	if err := s.Destroy(t.Context(), "sba0000000000000000000"); err != nil {
		t.Fatal(err)
	}
	if taken := m.taken(); taken != nothingTaken {
		t.Errorf("left: %s", taken)
	}
	if _, err := s.Get("sba0000000000000000000"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a destroyed sandbox is still known: %v", err)
	}
	if err := s.Destroy(t.Context(), "sba0000000000000000000"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a second destroy: %v", err)
	}
}

func TestCreateRefusesWhatCannotBe(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	for name, test := range map[string]struct {
		change func(*CreateRequest)
		code   fault.Code
		says   string
	}{
		"unknown template": {func(r *CreateRequest) { r.Template = "none" }, fault.NotFound, "none"},
		"no vcpus":         {func(r *CreateRequest) { r.Resources.VCPUs = 0 }, fault.InvalidRequest, "vcpus must be from 1 to 4"},
		"too much memory":  {func(r *CreateRequest) { r.Resources.MemoryMB = 4097 }, fault.InvalidRequest, "memory_mb must be from 1 to 4096"},
		"negative disk":    {func(r *CreateRequest) { r.Resources.DiskMB = -1 }, fault.InvalidRequest, "disk_size_mb"},
		"id with a slash":  {func(r *CreateRequest) { r.ID = "../x" }, fault.InvalidRequest, "id"},
		"no id":            {func(r *CreateRequest) { r.ID = "" }, fault.InvalidRequest, "id"},
	} {
		req := request("sbx0000000000000000000")
		test.change(&req)
		_, err := s.Create(t.Context(), req)
		if !fault.Is(err, test.code) || !strings.Contains(fault.MessageOf(err), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Create(t.Context(), request("sbx0000000000000000000")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), request("sbx0000000000000000000")); !fault.Is(err, fault.Conflict) {
		t.Errorf("an id that is taken: %v", err)
	}
}

func TestAFailureAtAnyStepLeavesNothing(t *testing.T) {
	for _, step := range []string{"acquire", "start", "init"} {
		t.Run(step, func(t *testing.T) {
			m := newMachine()
			dir := t.TempDir()
			s := m.open(t, dir)
			m.setFailure(step, errors.New("broken"))
			if _, err := s.Create(t.Context(), request("sbf0000000000000000000")); err == nil {
				t.Error("the create did not fail")
			}
			if taken := m.taken(); taken != nothingTaken {
				t.Errorf("left: %s", taken)
			}
			if files, _ := os.ReadDir(filepath.Join(dir, "sandboxes")); len(files) > 0 {
				t.Errorf("left: %v", files)
			}
			m.setFailure(step, nil)
			if _, err := s.Create(t.Context(), request("sbf0000000000000000000")); err != nil {
				t.Errorf("the same id, once all is well again: %v", err)
			}
		})
	}
}

func TestACallerWhoGoesAwayLeavesNothing(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	m.setFailure("guest", errors.New("never answers"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := s.Create(ctx, request("sbgone0000000000000000")); done <- err }()
	eventually(t, "the runtime runs", func() bool { return strings.Contains(m.taken(), "sbgone0000000000000000") })
	cancel()
	if err := <-done; !fault.Is(err, fault.Canceled) {
		t.Errorf("the create ended with %v", err)
	}
	if taken := m.taken(); taken != nothingTaken {
		t.Errorf("left: %s", taken)
	}
}

func TestAGuestThatDiesWhileItBootsFailsTheCreateAtOnce(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	m.setFailure("guest", errors.New("never answers"))
	done := make(chan error, 1)
	go func() { _, err := s.Create(t.Context(), request("sbdies0000000000000000")); done <- err }()
	eventually(t, "the runtime runs", func() bool { return strings.Contains(m.taken(), "sbdies0000000000000000") })
	m.end("sbdies0000000000000000", runtime.Exit{})
	select {
	case err := <-done:
		if !fault.Is(err, fault.AgentError) {
			t.Errorf("the create ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the create waits for a guest that has ended")
	}
}

func TestDestroyCutsACreateOff(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	m.hold = make(chan struct{})
	done := make(chan error, 1)
	go func() { _, err := s.Create(t.Context(), request("sbcut00000000000000000")); done <- err }()
	eventually(t, "the create is under way", func() bool { _, err := s.Get("sbcut00000000000000000"); return err == nil })
	if _, err := s.Guest("sbcut00000000000000000"); !fault.Is(err, fault.InvalidState) {
		t.Errorf("a starting sandbox can be used: %v", err)
	}
	if err := s.Destroy(t.Context(), "sbcut00000000000000000"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !fault.Is(err, fault.Conflict) {
		t.Errorf("the create ended with %v", err)
	}
	if taken := m.taken(); taken != nothingTaken {
		t.Errorf("left: %s", taken)
	}
}

func TestManyDestroysAtOnceAreOne(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	if _, err := s.Create(t.Context(), request("sbmany0000000000000000")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Destroy(t.Context(), "sbmany0000000000000000"); err != nil && !fault.Is(err, fault.NotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if taken := m.taken(); taken != nothingTaken {
		t.Errorf("left: %s", taken)
	}
}

func TestASandboxThatEndsByItselfSaysWhy(t *testing.T) {
	for name, exit := range map[string]runtime.Exit{"crash": {}, "memory": {OutOfMemory: true}} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			s := m.open(t, t.TempDir())
			if _, err := s.Create(t.Context(), request("sbend00000000000000000")); err != nil {
				t.Fatal(err)
			}
			m.end("sbend00000000000000000", exit)
			eventually(t, "the sandbox is in error", func() bool { sb, err := s.Get("sbend00000000000000000"); return err == nil && sb.Status == Failed })
			sb, _ := s.Get("sbend00000000000000000")
			if strings.Contains(sb.Reason, "out of memory") != exit.OutOfMemory || sb.Reason == "" {
				t.Errorf("reason %q", sb.Reason)
			}
			if taken := m.taken(); taken != nothingTaken {
				t.Errorf("an ended sandbox still holds: %s", taken)
			}
			// Its slot goes to another, which a destroy of the first must leave alone.
			if _, err := s.Create(t.Context(), request("sbnext0000000000000000")); err != nil {
				t.Fatal(err)
			}
			if err := s.Destroy(t.Context(), "sbend00000000000000000"); err != nil {
				t.Error(err)
			}
			if taken := m.taken(); taken != "slots [1], running [sbnext0000000000000000]" {
				t.Errorf("destroying the ended one left: %s", taken)
			}
		})
	}
}

func TestADestroyThatFailsCanBeTriedAgain(t *testing.T) {
	for _, step := range []string{"destroy", "release"} {
		t.Run(step, func(t *testing.T) {
			m := newMachine()
			s := m.open(t, t.TempDir())
			if _, err := s.Create(t.Context(), request("sbstuck000000000000000")); err != nil {
				t.Fatal(err)
			}
			m.setFailure(step, errors.New("stuck"))
			if err := s.Destroy(t.Context(), "sbstuck000000000000000"); err == nil {
				t.Error("the destroy did not fail")
			}
			if sb, err := s.Get("sbstuck000000000000000"); err != nil || sb.Status != Failed || sb.Reason == "" {
				t.Errorf("now %+v, %v", sb, err)
			}
			m.setFailure(step, nil)
			if err := s.Destroy(t.Context(), "sbstuck000000000000000"); err != nil {
				t.Error(err)
			}
			if taken := m.taken(); taken != nothingTaken {
				t.Errorf("left: %s", taken)
			}
		})
	}
}

func TestWatchTellsEveryStateThatLasts(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	if _, err := s.Create(t.Context(), request("sbfirst000000000000000")); err != nil {
		t.Fatal(err)
	}
	news := make(chan string, 64)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(ctx,
			func(sb Sandbox) error { news <- sb.ID + " " + string(sb.Status); return nil },
			func() error { news <- "synced"; return nil })
	}()
	expect := func(want string) {
		t.Helper()
		for deadline := time.After(10 * time.Second); ; {
			select {
			case got := <-news:
				if got == want {
					return
				}
			case <-deadline:
				t.Fatalf("never heard %q", want)
			}
		}
	}
	expect("sbfirst000000000000000 running")
	expect("synced")
	if _, err := s.Create(t.Context(), request("sbsecond00000000000000")); err != nil {
		t.Fatal(err)
	}
	expect("sbsecond00000000000000 running")
	if err := s.Destroy(t.Context(), "sbfirst000000000000000"); err != nil {
		t.Fatal(err)
	}
	expect("sbfirst000000000000000 stopped")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCloseEndsEverythingAndRefusesMore(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	for i := range 12 {
		if _, err := s.Create(t.Context(), request(fmt.Sprintf("sbc%019d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context(), StopKill); err != nil {
		t.Fatal(err)
	}
	if taken := m.taken(); taken != nothingTaken {
		t.Errorf("left: %s", taken)
	}
	if _, err := s.Create(t.Context(), request("sblate0000000000000000")); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("a create after Close: %v", err)
	}
	if err := s.Watch(t.Context(), nil, nil); err != nil {
		t.Errorf("a watch after Close: %v", err)
	}
}

// A destroy may come at any moment of a create, the one of its end among them: both come
// to their own end, and nothing is left.
func TestDestroyAtEveryMomentOfACreate(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	for i := range 200 {
		id := fmt.Sprintf("sbm%019d", i)
		var creates sync.WaitGroup
		creates.Go(func() {
			if _, err := s.Create(t.Context(), request(id)); err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
				t.Errorf("create: %v", err)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if i%2 == 1 { // in the moment in which it begins to run
			for sb, err := s.Get(id); ctx.Err() == nil && (err != nil || sb.Status != Running); sb, err = s.Get(id) {
			}
		}
		eventually(t, "the sandbox is destroyed", func() bool { return s.Destroy(ctx, id) == nil })
		cancel()
		creates.Wait()
		if taken := m.taken(); taken != nothingTaken {
			t.Fatalf("round %d left: %s", i, taken)
		}
	}
}
