package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/product"
)

// watcher is the program in every guest that is measured. It holds as many MiB as it is told
// to and looks at the clock each millisecond. When it has not had the processor for longer
// than two it prints the time, and for how long, in microseconds, and otherwise now and then
// that it is there. A restore is such a gap too.
const watcher = `
import os, sys, time
kept = os.urandom(int(sys.argv[1]) << 20)
print('up', flush=True)
last = told = time.monotonic()
while True:
    time.sleep(0.001)
    now = time.monotonic()
    if now - last > 0.002 or now - told > 0.05:
        told = now
        print('%d %d' % (time.time() * 1e6, (now - last) * 1e6), flush=True)
    last = now
`

// gap is a time in which a guest stood still.
type gap struct {
	ended time.Time
	took  time.Duration
}

func parseGap(line string) (gap, error) {
	var ended, took int64
	if _, err := fmt.Sscanf(line, "%d %d", &ended, &took); err != nil {
		return gap{}, fmt.Errorf("the watcher printed %q", line)
	}
	return gap{time.UnixMicro(ended), time.Duration(took) * time.Microsecond}, nil
}

// stopped is for how long a guest stood still at most between two times. It asks for what
// the watcher has seen until that is of a later time.
func stopped(ctx context.Context, from, to time.Time, seen func() ([]gap, error)) (most time.Duration, err error) {
	return most, await(ctx, "the watcher goes on", func() error {
		gaps, err := seen()
		if err == nil && (len(gaps) == 0 || gaps[len(gaps)-1].ended.Before(to)) {
			err = errors.New("it has not printed yet")
		}
		most = longest(gaps, from)
		return err
	})
}

// longest is the longest of the gaps that ended after a time.
func longest(gaps []gap, after time.Time) (most time.Duration) {
	for _, g := range gaps {
		if g.ended.After(after) {
			most = max(most, g.took)
		}
	}
	return most
}

const (
	gapsFile = "/tmp/gaps"
	// patience is how long anything may take that is not measured.
	patience = time.Minute
	poll     = 2 * time.Millisecond
)

// guest is a sandbox with a watcher in it.
type guest struct {
	server *product.Server
	id     string
}

// newGuest creates a sandbox whose watcher holds so many MiB.
func newGuest(ctx context.Context, s *product.Server, mib int) (*guest, error) {
	id, err := s.Create(ctx, api.CreateSandboxRequest{})
	if err != nil {
		return nil, err
	}
	g := &guest{s, id}
	if err := g.watch(ctx, mib); err != nil {
		return nil, errors.Join(err, g.remove())
	}
	return g, nil
}

func (g *guest) watch(ctx context.Context, mib int) error {
	if err := g.background(ctx, fmt.Sprintf(`exec python3 -c "$0" %d >%s`, mib, gapsFile), watcher); err != nil {
		return err
	}
	return await(ctx, "the watcher is up", func() error {
		_, err := g.server.Exec(ctx, g.id, "grep", "-q", "up", gapsFile)
		return err
	})
}

// background starts a shell script with an argument and leaves it running.
func (g *guest) background(ctx context.Context, script, arg string) error {
	return g.server.Do(ctx, http.MethodPost, "/v1/sandboxes/"+g.id+"/exec",
		api.ExecRequest{Cmd: "/bin/sh", Args: []string{"-c", script, arg}, Background: true}, nil)
}

// gaps are all that the watcher has seen so far.
func (g *guest) gaps(ctx context.Context) ([]gap, error) {
	out, err := g.server.Exec(ctx, g.id, "cat", gapsFile)
	if err != nil {
		return nil, err
	}
	var all []gap
	for line := range strings.Lines(strings.TrimPrefix(out, "up\n")) {
		one, err := parseGap(line)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

func (g *guest) post(ctx context.Context, action string, body, result any) error {
	return g.server.Do(ctx, http.MethodPost, "/v1/sandboxes/"+g.id+"/"+action, body, result)
}

func (g *guest) pause(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	err := g.post(ctx, "pause", nil, nil)
	return time.Since(began), err
}

// resume returns how long it took to resume, and to have the first output of a command.
func (g *guest) resume(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	if err := g.post(ctx, "resume", nil, nil); err != nil {
		return 0, err
	}
	err := says(ctx, g.server, g.id)
	return time.Since(began), err
}

func (g *guest) remove() error { return g.server.Remove(context.Background(), g.id) }

// says runs a command that prints.
func says(ctx context.Context, s *product.Server, id string) error {
	out, err := s.Exec(ctx, id, "/bin/echo", "up")
	if err == nil && out != "up\n" {
		err = fmt.Errorf("echo said %q", out)
	}
	return err
}

// await tries until something is so.
func await(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

// follower reads the gaps that the watcher of a bare container prints.
type follower struct {
	first chan struct{} // closed with the first line
	done  chan struct{} // closed at the end

	mu  sync.Mutex
	all []gap
}

func follow(output io.Reader) *follower {
	f := &follower{first: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		once := sync.OnceFunc(func() { close(f.first) })
		for lines := bufio.NewScanner(output); lines.Scan(); {
			if one, err := parseGap(lines.Text()); err == nil { // the first line is the rest of "up"
				f.mu.Lock()
				f.all = append(f.all, one)
				f.mu.Unlock()
			}
			once()
		}
	}()
	return f
}

func (f *follower) gaps() ([]gap, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[:len(f.all):len(f.all)], nil
}

// awaitFirst waits for the first line.
func (f *follower) awaitFirst(ctx context.Context) error {
	select {
	case <-f.first:
		return nil
	case <-f.done:
		return errors.New("the container ended without a word")
	case <-ctx.Done():
		return ctx.Err()
	}
}
