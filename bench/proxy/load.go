package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"
)

// The load that a sandbox serves while its terminal is looked at.
const (
	downloads    = 50
	stalled      = 5         // of them, whose readers take nothing
	slow         = 5         // of them, whose readers take slowRead bytes every slowEvery
	downloadRate = 2_500_000 // bytes a second, each: the ones that are read make 100 MB/s
	slowRead     = 4 << 10
	slowEvery    = 200 * time.Millisecond
	readBuffer   = 64 << 10

	sockets       = 20
	socketEvery   = 10 * time.Millisecond // a message of each WebSocket
	socketMessage = 100                   // bytes

	pollEvery = 5 * time.Millisecond // requests of all together
	pollers   = 16

	// loadLimit bounds how long it may take until all of the load is there, settle is how
	// long it then runs before anything counts.
	loadLimit = 30 * time.Second
	settle    = time.Second
)

// way is how the load gets to the server in the sandbox.
type way struct {
	client  *http.Client // of downloads and requests
	sockets *http.Client // of WebSockets, which need HTTP/1.1
	base    string
}

// load is one that is running.
type load struct {
	cancel context.CancelFunc
	group  *errgroup.Group
	began  time.Time
	// What came through.
	bytes, messages, answers atomic.Int64
}

// startLoad starts the load and returns when every part of it has had its first answer.
func startLoad(ctx context.Context, w way) (running, error) {
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	l := &load{cancel: cancel, group: group}
	var ready sync.WaitGroup
	part := func(run func(ctx context.Context, ready func()) error) {
		ready.Add(1)
		group.Go(func() error {
			once := sync.OnceFunc(ready.Done)
			defer once()
			err := run(ctx, once)
			if ctx.Err() != nil {
				return nil // it was ended
			}
			return err
		})
	}
	for i := range downloads {
		part(func(ctx context.Context, ready func()) error { return l.download(ctx, w, i, ready) })
	}
	for range sockets {
		part(func(ctx context.Context, ready func()) error { return l.socket(ctx, w, ready) })
	}
	ticks := make(chan struct{})
	for range pollers {
		part(func(ctx context.Context, ready func()) error { return l.poll(ctx, w, ticks, ready) })
	}
	group.Go(func() error {
		defer close(ticks)
		return every(ctx, pollEvery, func() error {
			select {
			case ticks <- struct{}{}:
			default: // all pollers wait: what is lost shows in the rate
			}
			return nil
		})
	})
	all := make(chan struct{})
	go func() { ready.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(loadLimit):
		return nil, errors.Join(errors.New("the load did not come up in time"), l.stop())
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, errors.Join(errors.New("the load did not last"), l.stop())
	}
	l.began = time.Now()
	l.bytes.Store(0)
	l.messages.Store(0)
	l.answers.Store(0)
	return l, nil
}

// describe says how much came through until now.
func (l *load) describe() string {
	took := time.Since(l.began).Seconds()
	return fmt.Sprintf("%.0f MB/s, %.0f messages/s, %.0f requests/s",
		float64(l.bytes.Load())/1e6/took, float64(l.messages.Load())/took, float64(l.answers.Load())/took)
}

// stop ends it. The error is what went wrong while it ran.
func (l *load) stop() error {
	l.cancel()
	return l.group.Wait()
}

// every calls do at each tick until ctx ends or it fails.
func every(ctx context.Context, interval time.Duration, do func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := do(); err != nil {
			return err
		}
	}
}

func (l *load) download(ctx context.Context, w way, number int, ready func()) error {
	resp, err := get(ctx, w.client, fmt.Sprintf("%s/download?rate=%d", w.base, downloadRate))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	ready()
	switch {
	case number < stalled:
		<-ctx.Done()
		return nil
	case number < stalled+slow:
		return every(ctx, slowEvery, func() error {
			n, err := io.CopyN(io.Discard, resp.Body, slowRead)
			l.bytes.Add(n)
			return err
		})
	}
	buffer := make([]byte, readBuffer)
	for {
		n, err := resp.Body.Read(buffer)
		l.bytes.Add(int64(n))
		if err != nil {
			return fmt.Errorf("a download broke off: %w", err)
		}
	}
}

func (l *load) socket(ctx context.Context, w way, ready func()) error {
	conn, err := dialSocket(ctx, w)
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		message := make([]byte, socketMessage)
		return every(ctx, socketEvery, func() error { return conn.Write(ctx, websocket.MessageBinary, message) })
	})
	group.Go(func() error {
		for {
			if _, _, err := conn.Read(ctx); err != nil {
				return fmt.Errorf("a WebSocket broke off: %w", err)
			}
			ready()
			l.messages.Add(1)
		}
	})
	return group.Wait()
}

// dialSocket opens a WebSocket to the server's echo.
func dialSocket(ctx context.Context, w way) (*websocket.Conn, error) {
	conn, _, err := websocket.Dial(ctx, w.base+"/ws", &websocket.DialOptions{HTTPClient: w.sockets}) //nolint:bodyclose // a WebSocket's has none
	return conn, err
}

func (l *load) poll(ctx context.Context, w way, ticks <-chan struct{}, ready func()) error {
	if err := fetch(ctx, w.client, w.base+"/ping"); err != nil {
		return err
	}
	ready()
	for range ticks {
		if err := fetch(ctx, w.client, w.base+"/ping"); err != nil {
			return err
		}
		l.answers.Add(1)
	}
	return nil
}
