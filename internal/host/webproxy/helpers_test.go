package webproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

func TestMain(m *testing.M) {
	code := m.Run()
	// No sandbox in these tests leaves a connection, and no tunnel a goroutine.
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const (
	id      = "sb0123456789abcdefghij"
	guestIP = "127.0.0.2" // the guest's address; the front's is 127.0.0.1
	// patience is how long a test waits for what should come at once.
	patience = 10 * time.Second
)

// lifecycle is a small Sandboxes.
type lifecycle struct {
	mu       sync.Mutex
	all      map[string]sandbox.Sandbox
	watchers []chan sandbox.Sandbox
}

func newLifecycle() *lifecycle {
	return &lifecycle{all: map[string]sandbox.Sandbox{
		id: {ID: id, Status: sandbox.Running, GuestIP: guestIP, StartedAt: time.Now()},
	}}
}

// Get implements Sandboxes.
func (l *lifecycle) Get(id string) (sandbox.Sandbox, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sb, ok := l.all[id]
	if !ok {
		return sandbox.Sandbox{}, fault.New(fault.NotFound, "no sandbox %q", id)
	}
	return sb, nil
}

// set changes a sandbox and tells those who watch.
func (l *lifecycle) set(change func(*sandbox.Sandbox)) {
	l.mu.Lock()
	sb := l.all[id]
	change(&sb)
	l.all[id] = sb
	watchers := l.watchers
	l.mu.Unlock()
	for _, w := range watchers {
		w <- sb
	}
}

// Watch implements Sandboxes.
func (l *lifecycle) Watch(ctx context.Context, each func(sandbox.Sandbox) error, synced func() error) error {
	const room = 16
	news := make(chan sandbox.Sandbox, room)
	l.mu.Lock()
	l.watchers = append(l.watchers, news)
	l.mu.Unlock()
	if err := synced(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case sb := <-news:
			if err := each(sb); err != nil {
				return err
			}
		}
	}
}

// bench is a proxy before a guest.
type bench struct {
	*lifecycle
	t     *testing.T
	proxy *Proxy
	front *httptest.Server
	port  int // of the guest's server
	// client follows no redirects and keeps no connections.
	client *http.Client
}

// newBench serves what listens on l, an address of the guest.
func newBench(t *testing.T, l net.Listener, cfg Config) *bench {
	t.Helper()
	life := newLifecycle()
	cfg.Sandboxes, cfg.Log = life, slog.New(slog.DiscardHandler)
	b := &bench{lifecycle: life, t: t, proxy: New(cfg), port: l.Addr().(*net.TCPAddr).Port}
	b.front = httptest.NewUnstartedServer(b.proxy)
	if atHand {
		b.front = httptest.NewUnstartedServer(near(b.proxy))
	}
	b.front.Config.ReadHeaderTimeout = time.Second
	b.front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	b.front.Start()
	ctx, stop := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		b.proxy.Run(ctx)
	}()
	eventually(t, "the proxy watches", func() bool {
		life.mu.Lock()
		defer life.mu.Unlock()
		return len(life.watchers) > 0
	})
	b.client = &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		stop()
		<-watched
		b.proxy.Close()
		b.front.Close()
		l.Close()
	})
	return b
}

// guestListener listens on the guest's address.
func guestListener(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", guestIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// withApp is a bench whose guest runs an HTTP server.
func withApp(t *testing.T, app http.Handler, cfg Config) *bench {
	t.Helper()
	l := guestListener(t)
	s := &http.Server{Handler: app, ReadHeaderTimeout: patience, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = s.Serve(l) }()
	b := newBench(t, l, cfg)
	t.Cleanup(func() { s.Close() })
	return b
}

// withRaw is a bench whose guest handles connections itself.
func withRaw(t *testing.T, cfg Config, handle func(net.Conn, *bufio.Reader)) *bench {
	t.Helper()
	l := guestListener(t)
	var conns sync.WaitGroup
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				handle(c, bufio.NewReader(c))
			})
		}
	}()
	b := newBench(t, l, cfg)
	t.Cleanup(conns.Wait)
	return b
}

func (b *bench) prefix() string { return webroute.Prefix(id, b.port) }

func (b *bench) request(method, path string, body io.Reader) *http.Request {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.front.URL+b.prefix()+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) do(r *http.Request) *http.Response {
	b.t.Helper()
	resp, err := b.client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (b *bench) get(path string) *http.Response {
	b.t.Helper()
	return b.do(b.request(http.MethodGet, path, http.NoBody))
}

func (b *bench) text(resp *http.Response) string {
	b.t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(body)
}

// raw opens a connection to the front and writes to it; PREFIX stands for the path prefix.
func (b *bench) raw(text string) (*net.TCPConn, *bufio.Reader) {
	b.t.Helper()
	c, err := new(net.Dialer).DialContext(b.t.Context(), "tcp", b.front.Listener.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		b.t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.ReplaceAll(text, "PREFIX", b.prefix())); err != nil {
		b.t.Fatal(err)
	}
	return c.(*net.TCPConn), bufio.NewReader(c)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline.C:
			t.Fatalf("still not so: %s", what)
		case <-tick.C:
		}
	}
}
