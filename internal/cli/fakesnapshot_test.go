package cli

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// handleStates adds the routes of pausing, copying and snapshots to a fake server.
func (s *fakeServer) handleStates(handle func(pattern string, h func(w http.ResponseWriter, r *http.Request) error)) {
	handle("POST /v1/sandboxes/{id}/pause", s.pass(api.SandboxStatusRunning, api.SandboxStatusPaused))
	handle("POST /v1/sandboxes/{id}/resume", s.pass(api.SandboxStatusPaused, api.SandboxStatusRunning))
	handle("POST /v1/sandboxes/{id}/fork", s.fork)
	handle("POST /v1/sandboxes/{id}/timeout", s.setTimeout)
	handle("GET /v1/sandboxes/{id}/metrics", s.metrics)
	handle("POST /v1/snapshots", s.snapshot)
	handle("GET /v1/snapshots", func(w http.ResponseWriter, _ *http.Request) error { return answer(w, http.StatusOK, s.snapshotList()) })
	handle("GET /v1/templates", func(w http.ResponseWriter, _ *http.Request) error {
		base := api.Template{ID: "base", Name: "base", Type: api.BaseTemplate, Vcpus: 1, MemoryMb: 512}
		return answer(w, http.StatusOK, append([]api.Template{base}, s.snapshotList()...))
	})
	handle("DELETE /v1/snapshots/{name}", s.removeSnapshot)
}

// rotten is the name of a snapshot that is not what was written.
const rotten = "rotten"

// restless is the name of a snapshot that somebody replaces as soon as anybody has seen it.
const restless = "restless"

func (s *fakeServer) snapshotList() []api.Template {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := append([]api.Template{}, s.templates...)
	for i := range s.templates {
		if t := &s.templates[i]; t.Name == restless {
			s.made++
			t.ID = fmt.Sprintf("sn9%019d", s.made)
		}
	}
	return list
}

// change does something to the sandbox that a request names.
func (s *fakeServer) change(r *http.Request, how func(sb *api.Sandbox) error) (api.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.boxes {
		if s.boxes[i].ID == r.PathValue("id") {
			err := how(&s.boxes[i])
			return s.boxes[i], err
		}
	}
	return api.Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q", r.PathValue("id"))
}

// pass takes a sandbox from one status to another.
func (s *fakeServer) pass(from, to api.SandboxStatus) func(w http.ResponseWriter, r *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		sb, err := s.change(r, func(sb *api.Sandbox) error {
			if sb.Status != from {
				return fault.New(fault.InvalidState, "sandbox %q is %s", sb.ID, sb.Status)
			}
			sb.Status = to
			return nil
		})
		if err != nil {
			return err
		}
		return answer(w, http.StatusOK, sb)
	}
}

func (s *fakeServer) fork(w http.ResponseWriter, r *http.Request) error {
	want, err := body[api.ForkRequest](r)
	if err != nil {
		return err
	}
	source, err := s.find(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var copies []api.Sandbox
	for range want.Count {
		s.made++
		c := source
		c.ID = fakeID(s.made)
		if want.TimeoutSec != nil {
			c.TimeoutSec = *want.TimeoutSec
		}
		copies = append(copies, c)
	}
	s.boxes = append(s.boxes, copies...)
	return answer(w, http.StatusCreated, copies)
}

func (s *fakeServer) setTimeout(w http.ResponseWriter, r *http.Request) error {
	want, err := body[api.TimeoutRequest](r)
	if err != nil {
		return err
	}
	sb, err := s.change(r, func(sb *api.Sandbox) error {
		if want.TimeoutSec != nil {
			sb.TimeoutSec = *want.TimeoutSec
		}
		if want.DeadlineSec != nil {
			sb.DeadlineSec = *want.DeadlineSec
		}
		if want.OnTimeout != "" {
			sb.OnTimeout = want.OnTimeout
		}
		sb.EndsAt = time.Time{}
		if sb.TimeoutSec > 0 {
			sb.EndsAt = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, sb)
}

func (s *fakeServer) metrics(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	used := api.Metrics{Points: []api.MetricsPoint{}}
	if r.URL.Query().Get("range") == "10m" {
		at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
		for i, cpu := range []float64{0, 50, 100} {
			used.Points = append(used.Points, api.MetricsPoint{
				Time: at.Add(time.Duration(i) * time.Second), CPUPct: cpu, CPULimitPct: 200, MemBytes: 64 << 20, MemLimitBytes: 576 << 20, DiskBytes: int64(i) << 10,
				DiskLimitBytes: 10 << 30, Pids: i, PidsLimit: 256, NetSentBps: 999, NetReceivedBps: 1_500_000 * int64(i), NetLimitBps: 200e6,
				NetSentBytes: 3 << 10, NetReceivedBytes: 5 << 20,
			})
		}
	}
	return answer(w, http.StatusOK, used)
}

func (s *fakeServer) snapshot(w http.ResponseWriter, r *http.Request) error {
	want, err := body[api.CreateSnapshotRequest](r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := slices.IndexFunc(s.templates, func(t api.Template) bool { return t.Name == want.Name })
	if taken >= 0 {
		if r.URL.Query().Get("overwrite") != "true" {
			return fault.New(fault.Conflict, "there is a snapshot %q already", want.Name)
		}
		s.templates = slices.Delete(s.templates, taken, taken+1)
	}
	made := api.Template{
		ID: fmt.Sprintf("sn%020d", len(s.templates)+1), Name: want.Name, Type: api.SnapshotTemplate, Vcpus: 1, MemoryMb: 512,
		SizeBytes: 3 << 19, SandboxID: want.SandboxID, Template: "base", CreatedAt: time.Now().Add(-90*time.Second - time.Duration(len(s.templates))*24*time.Hour),
	}
	made.Damaged = made.Name == rotten
	s.templates = append(s.templates, made)
	return answer(w, http.StatusCreated, made)
}

func (s *fakeServer) removeSnapshot(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.templates, func(t api.Template) bool { return t.Name == r.PathValue("name") || t.ID == r.PathValue("name") })
	if i < 0 {
		return fault.New(fault.NotFound, "there is no snapshot %q", r.PathValue("name"))
	}
	s.templates = slices.Delete(s.templates, i, i+1)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
