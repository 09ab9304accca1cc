package httpapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestStatesOfSandboxes(t *testing.T) {
	s := serve(t)
	at := time.Date(2026, 5, 4, 3, 2, 1, 500e6, time.UTC)
	s.states.pause = func(id string) (sandbox.Sandbox, error) {
		return sandbox.Sandbox{ID: id, Status: sandbox.Paused, PausedAt: at, SnapshotBytes: 7}, nil
	}
	s.states.resume = func(id string, wait time.Duration) (sandbox.Sandbox, error) {
		return sandbox.Sandbox{ID: id, Status: sandbox.Running, Reason: wait.String()}, nil
	}
	s.states.metrics = func(_ string, before time.Duration) ([]sandbox.Point, error) {
		return []sandbox.Point{{Time: at, CPUPct: 12.5, MemoryBytes: int64(before / time.Second), DiskBytes: 3, Processes: 4, SentBytes: 5, ReceivedBytes: 6,
			SentRate: 7.4, ReceivedRate: 8, Limits: sandbox.Limits{CPUPct: 100, DiskBytes: 30, Processes: 40, NetworkBitsPerSecond: 80}}}, nil
	}
	s.states.setTimeouts = func(id string, o sandbox.Timeouts) (sandbox.Sandbox, error) {
		if o.Timeout == nil || *o.Timeout != 0 || o.Deadline != nil || o.OnTimeout != sandbox.Kill {
			t.Errorf("timeouts %+v", o)
		}
		return sandbox.Sandbox{ID: id}, nil
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		has                string
	}{
		{"POST", "/v1/sandboxes/sb1/pause", "", 200, `"paused_at":"2026-05-04T03:02:01.5Z"`},
		{"POST", "/v1/capsules/sb1/pause", "", 200, `"snapshot_bytes":7`},
		{"POST", "/v1/sandboxes/sb1/resume", "", 200, `"reason":"0s"`},
		{"POST", "/v1/sandboxes/sb1/resume", `{"wait_sec":5}`, 200, `"reason":"5s"`},
		{"POST", "/v1/sandboxes/sb1/resume", `{"wait_sec":601}`, 400, `\"wait_sec\" must be at most 600`},
		{"POST", "/v1/sandboxes/sb1/timeout", `{"timeout_sec":0,"on_timeout":"kill"}`, 200, `"id":"sb1"`},
		{"POST", "/v1/sandboxes/sb1/timeout", `{}`, 400, `must have at least 1 of its fields`},
		{"POST", "/v1/sandboxes/sb1/timeout", `{"on_timeout":"sleep"}`, 400, `must be one of pause, kill`},
		{"GET", "/v1/sandboxes/sb1/metrics", "", 200, `"mem_bytes":600,`},
		{"GET", "/v1/sandboxes/sb1/metrics", "", 200, `"cpu_limit_pct":100,"cpu_pct":12.5,"disk_bytes":3,"disk_limit_bytes":30,"mem_bytes":600,` +
			`"net_limit_bps":80,"net_received_bps":8,"net_received_bytes":6,"net_sent_bps":7,"net_sent_bytes":5,"pids":4,"pids_limit":40,"time"`},
		{"GET", "/v1/sandboxes/sb1/metrics?range=24h", "", 200, `"mem_bytes":86400,`},
		{"GET", "/v1/sandboxes/sb1/metrics?range=5m", "", 200, `"timestamp_unix":1777863721`},
		{"GET", "/v1/sandboxes/sb1/metrics?range=3m", "", 400, `must be one of 5m, 10m`},
	} {
		if a := s.do(t, c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, c.has) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, a.status, a.body)
		}
	}
}

func TestSnapshotsAndTemplates(t *testing.T) {
	s := serve(t)
	snap := sandbox.Snapshot{ID: "sn1", Name: "web", Status: sandbox.SnapshotReady, SizeBytes: 9, Stopped: 3 * time.Millisecond}
	s.snapshots.create = func(o sandbox.SnapshotOptions) (sandbox.Snapshot, error) {
		if o.SandboxID != "sb1" || o.Name != "web" {
			t.Errorf("%+v", o)
		}
		if !o.Overwrite {
			return sandbox.Snapshot{}, fault.New(fault.Conflict, "taken")
		}
		return snap, nil
	}
	bad := sandbox.Snapshot{ID: "sn2", Name: "bad", Status: sandbox.SnapshotDamaged}
	s.snapshots.list = func() ([]sandbox.Snapshot, error) { return []sandbox.Snapshot{snap, bad}, nil }
	s.snapshots.find = func(name string) (sandbox.Snapshot, error) {
		if name != "web" {
			return sandbox.Snapshot{}, fault.New(fault.NotFound, "there is no snapshot %q", name)
		}
		return snap, nil
	}
	s.snapshots.delete = func(name string) error { _, err := s.snapshots.find(name); return err }
	s.snapshots.fork = func(_ string, count int, timeout *time.Duration) ([]sandbox.Sandbox, error) {
		if timeout != nil && *timeout != time.Minute {
			t.Errorf("timeout %v", timeout)
		}
		return make([]sandbox.Sandbox, count), nil
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		has                string
	}{
		{"POST", "/v1/snapshots", `{"sandbox_id":"sb1","name":"web"}`, 409, `"code":"conflict"`},
		{"POST", "/v1/snapshots?overwrite=true", `{"sandbox_id":"sb1","name":"web"}`, 201, `"stopped_us":3000`},
		{"POST", "/v1/snapshots?overwrite=yes", `{"sandbox_id":"sb1","name":"web"}`, 400, `overwrite`},
		{"POST", "/v1/snapshots", `{"name":"web"}`, 400, `\"sandbox_id\" is missing`},
		{"POST", "/v1/snapshots", `{"sandbox_id":"sb1","name":"A"}`, 400, `\"name\" must match`},
		{"GET", "/v1/snapshots", "", 200, `"name":"web"`},
		{"GET", "/v1/snapshots", "", 200, `"damaged":true,"default_env":{},`},
		{"GET", "/v1/snapshots?type=image", "", 200, `[]`},
		{"GET", "/v1/snapshots?type=disk", "", 400, `must be one of base, image, snapshot`},
		{"DELETE", "/v1/snapshots/web", "", 204, ""},
		{"DELETE", "/v1/snapshots/nope", "", 404, `no snapshot \"nope\"`},
		{"GET", "/v1/templates/base", "", 200, `"type":"base"`},
		{"GET", "/v1/templates/web", "", 200, `"type":"snapshot"`},
		{"GET", "/v1/templates/nope", "", 404, `no template \"nope\"`},
		{"DELETE", "/v1/templates/base", "", 400, `cannot be deleted`},
		{"DELETE", "/v1/templates/web", "", 204, ""},
		{"POST", "/v1/sandboxes/sb1/fork", `{"count":101}`, 400, `\"count\" must be at most 100`},
		{"POST", "/v1/sandboxes/sb1/fork", `{"count":0}`, 400, `\"count\" must be at least 1`},
	} {
		if a := s.do(t, c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, c.has) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, a.status, a.body)
		}
	}
	for body, want := range map[string]int{"": 1, `{"count":3,"timeout_sec":60}`: 3} {
		var copies []json.RawMessage
		a := s.do(t, http.MethodPost, "/v1/sandboxes/sb1/fork", body)
		if err := json.Unmarshal([]byte(a.body), &copies); a.status != http.StatusCreated || err != nil || len(copies) != want {
			t.Errorf("fork %s: %d %s", body, a.status, a.body)
		}
	}
	var all []struct{ Name, Type string }
	if err := json.Unmarshal([]byte(s.do(t, http.MethodGet, "/v1/templates", "").body), &all); err != nil || len(all) != 3 || all[0].Type != "base" || all[1].Name != "web" {
		t.Errorf("templates %+v, %v", all, err)
	}
}
