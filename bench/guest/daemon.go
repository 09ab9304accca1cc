package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

const (
	readyLimit = 10 * time.Second
	readyPoll  = 5 * time.Millisecond
	stopLimit  = 5 * time.Second
	// clientBuffer is what the client reads and writes at once, in bytes: the client must
	// not be what is measured.
	clientBuffer = 1 << 20
)

// daemon is one that speaks the guest contract, and a client of it.
type daemon struct {
	binary  string
	address string
	cmd     *exec.Cmd
	log     bytes.Buffer
	exited  chan struct{} // closed when it has ended, for whatever reason
	client  *http.Client
}

// newClient returns a daemon that is not ours to start: only its client.
func newClient(address string) *daemon {
	return &daemon{
		address: address,
		exited:  make(chan struct{}),
		client: &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: 16, DisableCompression: true, ReadBufferSize: clientBuffer, WriteBufferSize: clientBuffer,
		}},
	}
}

func startDaemon(ctx context.Context, address, binary string, args ...string) (*daemon, error) {
	d := newClient(address)
	d.binary = binary
	d.cmd = exec.CommandContext(ctx, binary, args...)
	d.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() {
		defer close(d.exited)
		_ = d.cmd.Wait() // its state is in cmd
	}()
	return d, nil
}

// ready waits until the daemon answers.
func (d *daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url("/health"), nil)
		if err != nil {
			return err
		}
		response, err := d.client.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusNoContent {
				return nil
			}
			err = fmt.Errorf("its health is %s", response.Status)
		}
		select {
		case <-tick.C:
		case <-d.exited:
			return fmt.Errorf("%s ended (%v); it said:\n%s", d.binary, d.cmd.ProcessState, d.log.Bytes())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", d.binary, err)
		}
	}
}

func (d *daemon) url(path string) string { return "http://" + d.address + path }

func (d *daemon) processes(options ...connect.ClientOption) processconnect.ProcessClient {
	return processconnect.NewProcessClient(d.client, d.url(""), options...)
}

// stop ends the daemon. Anything that it leaves behind ends with the namespace.
func (d *daemon) stop() error {
	d.client.CloseIdleConnections()
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.exited:
	case <-time.After(stopLimit):
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	return nil
}

// memory is what the daemon holds, in MiB, by the name that /proc has for it.
func (d *daemon) memory(name string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			var kib float64
			_, err := fmt.Sscan(value, &kib)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", name, d.cmd.Process.Pid)
}

// cpu is how long the daemon's threads have run, to the nanosecond.
func (d *daemon) cpu() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", d.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("no threads of process %d: %w", d.cmd.Process.Pid, err)
	}
	var total time.Duration
	for _, file := range files {
		text, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue // a thread may end meanwhile
		}
		if err != nil {
			return 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}
