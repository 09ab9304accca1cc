package rpc

import (
	"encoding/json"
	"net/http"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// liveParam asks for a preparation after which the sandbox goes on.
const liveParam = "live"

// prepareSnapshot brings the daemon to rest. The answer comes when it is, and nothing is
// to be asked before the snapshot; POST /init, after it, wakes the daemon again. With
// ?live=true, for a sandbox that goes on after its snapshot, it stays awake.
func (s *Server) prepareSnapshot(w http.ResponseWriter, r *http.Request) error {
	prepare := s.lifecycle.Prepare
	if r.URL.Query().Get(liveParam) == "true" {
		prepare = s.lifecycle.Tidy
	}
	if err := prepare(r.Context()); err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// metricsAnswer is what the SDKs read, with sizes in bytes unless their name says MiB.
type metricsAnswer struct {
	Timestamp   int64   `json:"ts"` // Unix seconds
	CPUCount    int     `json:"cpu_count"`
	CPUUsed     float64 `json:"cpu_used_pct"`
	MemTotal    uint64  `json:"mem_total"`
	MemUsed     uint64  `json:"mem_used"`
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskUsed    uint64  `json:"disk_used"`
	DiskTotal   uint64  `json:"disk_total"`
}

const bytesPerMiB = 1 << 20

// metrics tells what the sandbox uses.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) error {
	m, err := s.meter.Measure()
	if err != nil {
		return err
	}
	return writeJSON(w, metricsAnswer{
		Timestamp: m.At.Unix(), CPUCount: m.CPUCount, CPUUsed: m.CPUUsed,
		MemTotal: m.MemTotal, MemUsed: m.MemUsed, MemCache: m.MemCache,
		MemTotalMiB: m.MemTotal / bytesPerMiB, MemUsedMiB: m.MemUsed / bytesPerMiB,
		DiskUsed: m.DiskUsed, DiskTotal: m.DiskTotal,
	})
}

// envs tells the environment that every process gets.
func (s *Server) envs(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, s.identity.DefaultEnv())
}

// portAnswer is one listening port.
type portAnswer struct {
	Port uint16 `json:"port"`
	// Address is an IP address; 0.0.0.0 and :: stand for every one.
	Address  string `json:"address"`
	Protocol string `json:"protocol"` // tcp or tcp6
	// PID and Process are absent when no process was found that holds the port.
	PID     int    `json:"pid,omitempty"`
	Process string `json:"process,omitempty"`
	// Forwarded says that a server on loopback can be reached from outside.
	Forwarded bool `json:"forwarded"`
}

// listPorts tells which ports servers listen on.
func (s *Server) listPorts(w http.ResponseWriter, r *http.Request) error {
	list, err := s.ports.List(r.Context())
	if err != nil {
		return err
	}
	var body struct {
		Ports []portAnswer `json:"ports"`
	}
	body.Ports = make([]portAnswer, len(list)) // none is [], not null
	for i, p := range list {
		body.Ports[i] = portAnswer{
			Port: p.Port, Address: p.Address.String(), Protocol: p.Protocol,
			PID: p.PID, Process: p.Process, Forwarded: p.Forwarded,
		}
	}
	return writeJSON(w, body)
}

// writeJSON answers with what is true now and may be another thing in a moment.
func writeJSON(w http.ResponseWriter, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "the answer could not be written as JSON")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(data) // the client may be gone; there is nobody left to tell
	return nil
}
