package sandbox

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestWakeIsOneResume(t *testing.T) {
	s, _, host, sb := quiet(t, Options{Web: WebOptions{AutoResume: true}})
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	resumes := 0
	host.onResume = func(string) error { resumes++; return nil }
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := s.Traffic().Wake(t.Context(), sb.ID); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, err := s.Traffic().Find(t.Context(), sb.ID); err != nil || got.Status != Running || !got.Web.AutoResume {
		t.Errorf("%+v, %v", got, err)
	}
	if resumes != 1 {
		t.Errorf("it was resumed %d times", resumes)
	}
	if err := s.Traffic().Wake(t.Context(), "sbnone"); !fault.Is(err, fault.NotFound) {
		t.Errorf("nobody was woken: %v", err)
	}
	host.onResume = func(string) error { return fault.New(fault.NoSpace, "no room") }
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Traffic().Wake(t.Context(), sb.ID); !fault.Is(err, fault.NoSpace) {
		t.Errorf("a resume that failed: %v", err)
	}
}

func TestWakeWaitsForAPauseToEnd(t *testing.T) {
	s, _, host, sb := quiet(t, Options{})
	begun, release := make(chan struct{}), make(chan struct{})
	host.onPause = func(string) error { close(begun); <-release; return nil }
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := s.Pause(t.Context(), sb.ID); err != nil {
			t.Error(err)
		}
	})
	<-begun
	if _, ok := s.Traffic().Begin(sb.ID); ok {
		t.Error("a request began in a sandbox that is being paused")
	}
	both.Go(func() {
		if err := s.Traffic().Wake(t.Context(), sb.ID); err != nil {
			t.Error(err)
		}
	})
	close(release)
	both.Wait()
	end, ok := s.Traffic().Begin(sb.ID)
	if !ok {
		t.Fatal("no request can begin after the wake")
	}
	end()
}

// Who saw on the host that a sandbox is paused, before its news came, can wake it.
func TestRefreshTakesTheHostsWord(t *testing.T) {
	s, _, host := newTest(t) // it does not run, so that it hears no news
	sb, err := s.Create(t.Context(), Options{Web: WebOptions{AutoResume: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Traffic().Find(t.Context(), sb.ID); err != nil || got.Status != Running {
		t.Fatalf("it was heard of: %+v, %v", got, err)
	}
	if err := s.Traffic().Refresh(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Traffic().Find(t.Context(), sb.ID); err != nil || got.Status != Paused {
		t.Errorf("after a refresh: %+v, %v", got, err)
	}
	if err := s.Traffic().Wake(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
	if got, err := s.Traffic().Find(t.Context(), sb.ID); err != nil || got.Status != Running {
		t.Errorf("after a wake: %+v, %v", got, err)
	}
	if err := s.Traffic().Refresh(t.Context(), "sbnone"); err != nil {
		t.Errorf("of a sandbox that there is not: %v", err)
	}
}

func TestFollowersHearOfEveryChange(t *testing.T) {
	s, _, _, sb := quiet(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan Status, 100)
	var following sync.WaitGroup
	following.Go(func() {
		s.Traffic().Follow(ctx, func(id string, status Status) {
			if id == sb.ID {
				heard <- status
			}
		})
	})
	defer following.Wait()
	defer cancel()
	eventually(t, "somebody follows", func() bool {
		s.changes.mu.Lock()
		defer s.changes.mu.Unlock()
		return len(s.changes.followers) == 1
	})
	// Of changes that come quickly only the last is sure to be told.
	expect := func(want Status) {
		t.Helper()
		limit := time.After(10 * time.Second)
		for {
			select {
			case got := <-heard:
				if got == want {
					return
				}
			case <-limit:
				t.Fatalf("%s was never told", want)
			}
		}
	}
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	expect(Paused)
	if _, err := s.Resume(t.Context(), sb.ID, 0); err != nil {
		t.Fatal(err)
	}
	expect(Running)
	if err := s.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	expect(Missing)
}

func TestPrivateSandboxesHaveTokensOfTheirOwn(t *testing.T) {
	s, _, _, sb := quiet(t, Options{Web: WebOptions{Private: true, MaskHost: "localhost:${PORT}"}})
	if !sb.Web.Private() || len(sb.Web.TrafficToken) != tokenLength || sb.Web.MaskHost != "localhost:${PORT}" {
		t.Fatalf("%+v", sb.Web)
	}
	if c := sb.copied(nil); !c.Web.Private() || c.Web.TrafficToken == sb.Web.TrafficToken || c.Web.MaskHost != sb.Web.MaskHost {
		t.Errorf("a copy has %+v", c.Web)
	}
	for _, bad := range []string{"a b", "a/b", "http://x", "x:$PORT", "x\r\ny", "[::1", "x:1:2"} {
		_, err := s.Create(t.Context(), Options{Web: WebOptions{MaskHost: bad}})
		if !fault.Is(err, fault.InvalidRequest) || !strings.Contains(err.Error(), "mask_request_host") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, good := range []string{"localhost", "localhost:${PORT}", "a.example.com:80", "[::1]:${PORT}", "127.0.0.1"} {
		if err := (WebOptions{MaskHost: good}).validate(); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

type fakePorts []Listening

func (f fakePorts) List(context.Context, string) ([]Listening, error) { return f, nil }

func TestPorts(t *testing.T) {
	s, _, _, sb := quiet(t, Options{})
	s.ports = fakePorts{
		{8080, "0.0.0.0", 7, "node"}, {80, "127.0.0.1", 0, ""}, {8080, "::", 7, "node"}, {8080, "::", 8, "node"}, {8080, "0.0.0.0", 8, "node"},
	}
	got, err := s.Traffic().Ports(t.Context(), sb.ID)
	want := []Port{
		{80, []string{"127.0.0.1"}, nil},
		{8080, []string{"0.0.0.0", "::"}, []PortProcess{{7, "node"}, {8, "node"}}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Traffic().Ports(t.Context(), sb.ID); !fault.Is(err, fault.InvalidState) {
		t.Errorf("of a paused sandbox: %v", err)
	}
}
